-- name: save
-- Store requests with their inbox rows, each at most once by its key, else by its request id.
-- An outcome of 4 lost a race: the row that won cannot be seen by this statement, run it again.
with asked as (
    select * from unnest(
        $1::bigint[], $2::int[], $3::smallint[], $4::text[], $5::text[], $6::text[],
        $7::smallint[], $8::bigint[], $9::int[], $10::smallint[], $11::timestamptz[], $12::text[],
        $13::bytea[], $14::bytea[], $15::text[], $16::int[], $17::bigint[], $18::text[], $19::bool[]
    ) with ordinality as a (
        request_id, group_id, shard, entity_type, entity_id, tag,
        uninterruptible, reply_execution, reply_group_id, reply_shard, deliver_at, key,
        headers, payload, target, version, parent, attributes, wait, nth
    )
),
known as (
    select a.nth, e.request_id, e.payload
    from asked a
    left join lateral (
        select d.request_id from engine.dedup d where d.key = a.key
    ) d on true
    cross join lateral (
        select e.request_id, e.payload from engine.envelopes e
        where e.request_id = case when a.key is null then a.request_id else d.request_id end
    ) e
),
aim as (
    select a.nth, d.request_id, x.status
    from asked a
    cross join lateral (
        select d.request_id from engine.dedup d where d.key = a.target
    ) d
    cross join lateral (
        select x.status from engine.executions x where x.request_id = d.request_id
    ) x
),
open as (
    select a.*, case when a.version is null then t.request_id else a.request_id end as execution
    from asked a
    left join aim t on t.nth = a.nth
    where a.target is null or t.status < 5
),
fresh as (
    insert into engine.dedup (key, request_id)
    select o.key, o.request_id from open o
    where o.key is not null
    order by o.key collate "C", o.nth
    on conflict (key) do nothing
    returning request_id
),
stored as (
    insert into engine.envelopes (
        request_id, group_id, shard, entity_type, entity_id, tag, uninterruptible,
        reply_execution, reply_group_id, reply_shard, deliver_at, key, headers, payload
    )
    select
        o.request_id, o.group_id, o.shard, o.entity_type, o.entity_id, o.tag, o.uninterruptible,
        o.reply_execution, o.reply_group_id, o.reply_shard, o.deliver_at, o.key, o.headers,
        o.payload
    from open o
    where o.key is null or o.request_id in (select f.request_id from fresh f)
    order by o.request_id
    on conflict (request_id) do nothing
    returning request_id
),
delivered as (
    insert into engine.inbox (group_id, shard, kind, request_id, execution, due_at)
    select o.group_id, o.shard, 0, o.request_id, o.execution, o.deliver_at
    from open o
    where o.request_id in (select s.request_id from stored s)
    order by o.nth
    returning request_id, seq
),
begun as (
    insert into engine.executions (
        request_id, workflow, execution_id, group_id, shard, status, version, parent, attributes
    )
    select
        o.request_id, o.entity_type, o.entity_id, o.group_id, o.shard, 0, o.version, o.parent,
        o.attributes::jsonb
    from open o
    where o.version is not null and o.request_id in (select s.request_id from stored s)
),
answers as (
    select
        a.nth,
        a.wait,
        case
            when s.request_id is not null then 0
            when k.request_id is not null then 1
            when a.target is not null and t.nth is null then 2
            when t.status >= 5 then 3
            else 4
        end as outcome,
        coalesce(k.request_id, a.request_id) as request_id,
        s.seq,
        k.payload
    from asked a
    left join known k on k.nth = a.nth
    left join aim t on t.nth = a.nth
    left join delivered s on s.request_id = a.request_id
),
awaited as (
    insert into engine.waiters (request_id, channel)
    select distinct w.request_id, $20::text from answers w
    where w.wait and w.outcome < 2 and $20::text is not null
    on conflict do nothing
)
select w.outcome, w.request_id, w.seq, w.payload from answers w order by w.nth;
