-- name: flush
-- Write what one owner decided: journal, replies, requests, inbox rows that are done, executions,
-- states of entities.
-- The part before "written" is that of save.sql. An answer without an outcome is the inbox row of a
-- reply for the execution that waits for it; one with outcome 4 is that of a follower, with the group
-- and shard that it is in. Rows are deleted by their place: an inbox that was
-- empty when a plan was made would be read from end to end by a join. An exit has the last sequence
-- of its request; it is looked for behind what was acknowledged, where no deleted chunks are. A state
-- that came with an exit is saved if that was; an answer without a seq says that it was not. The
-- inbox row of a queue's item takes a row to the queue with it.
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
),
written as (
    insert into engine.journal (
        execution, run, position, kind, outcome, attempt, ordinal, digest, source, at, started_at,
        due_at, name, payload
    )
    select * from unnest(
        $22::bigint[], $23::int[], $24::int[], $25::smallint[], $26::smallint[], $27::int[],
        $28::int[], $29::bigint[], $30::bigint[], $31::timestamptz[], $32::timestamptz[],
        $33::timestamptz[], $34::text[], $35::bytea[]
    ) as j
),
given as (
    select * from unnest(
        $36::bigint[], $37::int[], $38::smallint[], $39::bytea[], $40::bigint[], $41::int[],
        $42::smallint[]
    ) as g (request_id, sequence, kind, payload, reply_execution, reply_group_id, reply_shard)
),
replied as (
    insert into engine.replies (request_id, sequence, kind, payload)
    select g.request_id, g.sequence, g.kind, g.payload
    from given g
    where coalesce((
        select r.kind from engine.replies r
        where r.request_id = g.request_id and r.sequence > case when g.sequence = 0 then -1 else
            coalesce((select k.sequence from engine.acks k where k.request_id = g.request_id), -1)
            end
        order by r.sequence desc
        limit 1
    ), 0) = 0
    on conflict do nothing
    returning request_id, kind
),
returned as (
    insert into engine.inbox (group_id, shard, kind, request_id, execution)
    select g.reply_group_id, g.reply_shard, 1, g.request_id, g.reply_execution
    from given g
    where g.kind <> 0 and g.reply_execution is not null
        and (g.request_id in (select r.request_id from replied r where r.kind <> 0)) is true
    returning request_id, seq
),
settled as (
    delete from engine.inbox d
    where d.ctid = any (array(
        select i.ctid
        from unnest($43::int[], $44::smallint[], $45::bigint[]) as s (group_id, shard, seq)
        cross join lateral (
            select i.ctid from engine.inbox i
            where i.group_id = s.group_id and i.shard = s.shard and i.seq = s.seq
            offset 0
        ) i
    ))
    returning d.kind, d.request_id
),
freed as (
    insert into engine.inbox (group_id, shard, kind, request_id)
    select e.group_id, e.shard, 4, d.request_id
    from settled d
    cross join lateral (
        select e.group_id, e.shard from engine.envelopes e where e.request_id = d.request_id
        offset 0
    ) e
    where d.kind = 3
),
moved as (
    update engine.executions x
    set
        run = m.run,
        version = coalesce(m.version, x.version),
        status = m.status,
        started_at = coalesce(x.started_at, m.started_at),
        finished_at = m.finished_at,
        wake_at = m.wake_at,
        waiting = m.waiting,
        failures = case when x.run = m.run and m.verdict <> 2 then x.failures else 0 end,
        trial = case m.verdict when 0 then x.trial else m.verdict = 1 end,
        failed_position = case when x.run = m.run then x.failed_position else 0 end,
        error = m.error,
        attributes = coalesce(m.attributes::jsonb, x.attributes)
    from unnest(
        $46::bigint[], $47::int[], $48::smallint[], $49::timestamptz[], $50::timestamptz[],
        $51::timestamptz[], $52::text[], $53::smallint[], $54::int[], $55::text[], $56::text[]
    ) as m (
        request_id, run, status, started_at, finished_at, wake_at, waiting, verdict, version, error,
        attributes
    )
    where x.request_id = m.request_id
    returning x.request_id, x.status, x.followers
),
followed as (
    insert into engine.inbox (group_id, shard, kind, request_id, execution)
    select m.followers[n + 1], m.followers[n + 2], 1, m.request_id, m.followers[n]
    from moved m
    cross join lateral generate_series(1, cardinality(m.followers), 3) n
    where m.status >= 5
    returning request_id, group_id, shard
),
offered as (
    select
        u.*, u.request_id is null
            or (u.request_id in (select r.request_id from replied r where r.kind <> 0)) is true
            as accepted
    from unnest(
        $57::int[], $58::smallint[], $59::text[], $60::text[], $61::bigint[], $62::bytea[],
        $63::bigint[]
    ) with ordinality
        as u (group_id, shard, entity_type, entity_id, version, payload, request_id, nth)
),
saved as (
    insert into engine.entity_states as s (
        group_id, shard, entity_type, entity_id, version, payload
    )
    select distinct on (o.entity_type, o.entity_id)
        o.group_id, o.shard, o.entity_type, o.entity_id, o.version, o.payload
    from offered o
    where o.accepted
    order by o.entity_type, o.entity_id, o.version desc, o.nth
    on conflict (entity_type, entity_id) do update
    set
        group_id = excluded.group_id,
        shard = excluded.shard,
        version = excluded.version,
        saved_at = excluded.saved_at,
        payload = excluded.payload
    where excluded.version > s.version
)
select a.outcome, a.asked, a.found, a.seq, a.payload from answers a
union all
select null, b.request_id, null, b.seq, null from returned b
union all
select 4, f.request_id, f.group_id, f.shard, null from followed f
union all
select null, o.request_id, null, null, null from offered o where not o.accepted;
