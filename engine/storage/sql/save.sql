-- name: save
-- Store requests with their inbox rows, each at most once by its key, else by its request id.
-- A request without an answer lost a race: the row that won is not seen by this statement, run it
-- again. "(x in (select ...)) is true" is a hashed lookup, where a join of two such lists would be
-- planned for a handful of rows: as a loop over all pairs.
with asked as (
    select
        a.*, k.request_id as known, k.payload as known_payload,
        t.request_id as aim, t.status as aim_status
    from unnest(
        $1::bigint[], $2::int[], $3::smallint[], $4::text[], $5::text[], $6::text[],
        $7::smallint[], $8::bigint[], $9::int[], $10::smallint[], $11::timestamptz[], $12::text[],
        $13::bytea[], $14::bytea[], $15::text[], $16::int[], $17::bigint[], $18::text[], $19::bool[],
        $20::bigint[]
    ) with ordinality as a (
        request_id, group_id, shard, entity_type, entity_id, tag,
        uninterruptible, reply_execution, reply_group_id, reply_shard, deliver_at, key,
        headers, payload, target, version, parent, attributes, wait, entity, nth
    )
    left join lateral (
        select d.request_id from engine.dedup d where d.key = a.key offset 0
    ) d on true
    left join lateral (
        select e.request_id, e.payload from engine.envelopes e
        where e.request_id = case when a.key is null then a.request_id else d.request_id end
        offset 0
    ) k on true
    left join lateral (
        select d.request_id from engine.dedup d where d.key = a.target offset 0
    ) g on true
    left join lateral (
        select x.request_id, x.status from engine.executions x
        where x.request_id = g.request_id
        offset 0
    ) t on true
),
wanted as (
    select a.*, case when a.version is null then a.aim else a.request_id end as execution
    from asked a
    where a.known is null and (a.target is null or a.aim_status < 5)
),
fresh as (
    insert into engine.dedup (key, request_id)
    select w.key, w.request_id from wanted w
    where w.key is not null
    order by w.key collate "C", w.nth
    on conflict (key) do nothing
    returning request_id
),
stored as (
    insert into engine.envelopes (
        request_id, group_id, shard, entity_type, entity_id, tag, uninterruptible,
        reply_execution, reply_group_id, reply_shard, deliver_at, key, headers, payload
    )
    select
        w.request_id, w.group_id, w.shard, w.entity_type, w.entity_id, w.tag, w.uninterruptible,
        w.reply_execution, w.reply_group_id, w.reply_shard, w.deliver_at, w.key, w.headers,
        w.payload
    from wanted w
    where w.key is null or w.request_id in (select f.request_id from fresh f)
    order by w.request_id
    on conflict (request_id) do nothing
    returning request_id
),
delivered as (
    insert into engine.inbox (group_id, shard, kind, request_id, execution, entity, due_at)
    select w.group_id, w.shard, 0, w.request_id, w.execution, w.entity, w.deliver_at
    from wanted w
    where (w.request_id in (select s.request_id from stored s)) is true
    order by w.nth
    returning request_id, seq
),
begun as (
    insert into engine.executions (
        request_id, workflow, execution_id, group_id, shard, status, version, parent, attributes
    )
    select
        w.request_id, w.entity_type, w.entity_id, w.group_id, w.shard, 0, w.version, w.parent,
        w.attributes::jsonb
    from wanted w
    where w.version is not null
        and (w.request_id in (select s.request_id from stored s)) is true
),
awaited as (
    insert into engine.waiters (request_id, channel)
    select coalesce(a.known, a.request_id), $21::text from asked a
    where a.wait and $21::text is not null
        and (a.known is not null or a.request_id in (select s.request_id from stored s))
    on conflict do nothing
),
answers as (
    select
        case when a.known is not null then 1 when a.aim is null then 2 else 3 end as outcome,
        a.request_id as asked, coalesce(a.known, a.request_id) as found, null::bigint as seq,
        a.known_payload as payload
    from asked a
    where a.known is not null or a.target is not null and (a.aim_status < 5) is not true
    union all
    select 0, d.request_id, d.request_id, d.seq, null from delivered d
)
select a.outcome, a.asked, a.found, a.seq, a.payload from answers a;
