-- name: finish
-- As flush, of which it is the middle, for what holds neither requests nor states of entities: most
-- of what is flushed. To begin the larger statement alone takes the server a sixth of a millisecond.
with written as (
    insert into engine.journal (
        execution, run, position, kind, outcome, attempt, ordinal, digest, source, at, started_at,
        due_at, name, payload
    )
    select * from unnest(
        $1::bigint[], $2::int[], $3::int[], $4::smallint[], $5::smallint[], $6::int[],
        $7::int[], $8::bigint[], $9::bigint[], $10::timestamptz[], $11::timestamptz[],
        $12::timestamptz[], $13::text[], $14::bytea[]
    ) as j
),
given as (
    select * from unnest(
        $15::bigint[], $16::int[], $17::smallint[], $18::bytea[], $19::bigint[], $20::int[],
        $21::smallint[]
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
        from unnest($22::int[], $23::smallint[], $24::bigint[]) as s (group_id, shard, seq)
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
        $25::bigint[], $26::int[], $27::smallint[], $28::timestamptz[], $29::timestamptz[],
        $30::timestamptz[], $31::text[], $32::smallint[], $33::int[], $34::text[], $35::text[]
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
)
select
    null::int as outcome, b.request_id as asked, null::bigint as found, b.seq,
    null::bytea as payload
from returned b
union all
select 4, f.request_id, f.group_id, f.shard, null from followed f;
