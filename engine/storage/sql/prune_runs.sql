-- name: prune_runs
-- Delete the oldest runs that executions of these workflows have left behind, if they are over since
-- a time, with what they were told and have sent. What is resolved stays so in the runs to come, and
-- so does what says it. Looks at some executions that go on, behind one, and tells how far it came if
-- there may be more.
with looked as (
    select x.request_id, x.run, u.until
    from unnest($1::text[], $2::timestamptz[]) as u (workflow, until)
    cross join lateral (
        select x.request_id, x.run from engine.executions x
        where x.workflow = u.workflow and x.request_id > $3::bigint
            and x.run > 1 and x.finished_at is null
        order by x.request_id
        limit $4::bigint
    ) x
    order by x.request_id
    limit $4::bigint
),
over as (
    select l.request_id, r.run
    from looked l
    cross join lateral (
        select j.run from engine.journal j
        where j.execution = l.request_id and j.run < l.run
        order by j.run
        limit 1
    ) f
    cross join lateral generate_series(f.run, least(f.run + $5::int, l.run) - 1) as r (run)
    cross join lateral (
        select j.at from engine.journal j
        where j.execution = l.request_id and j.run = r.run
        order by j.position desc
        limit 1
    ) e
    where e.at <= l.until
),
rows as (
    select j.ctid as place, j.kind, j.source
    from over o
    cross join lateral (
        select j.ctid, j.kind, j.source from engine.journal j
        where j.execution = o.request_id and j.run = o.run
        offset 0
    ) j
),
told as (
    select distinct j.source as request_id from rows j
    left join lateral (
        select true as waits from engine.inbox i where i.request_id = j.source limit 1
    ) a on true
    where j.source is not null and j.kind <> 4 and a.waits is null
        and not exists (select from engine.executions c where c.request_id = j.source)
        and not exists (select from engine.queue_items q where q.request_id = j.source)
),
letters as (
    -- INVARIANT sent-again: who sends a dead letter again deletes its exit. What that one has, or has
    -- had since this statement began, is not found here, and who comes later finds it deleted.
    select r.request_id
    from told l
    cross join lateral (
        select r.request_id from engine.replies r
        where r.request_id = l.request_id and r.kind = 5
        for update skip locked
    ) r
),
gone as (
    select t.request_id
    from told t
    left join lateral (
        select true as dead from engine.replies r
        where r.request_id = t.request_id and r.kind = 5
        offset 0
    ) x on true
    where x.dead is null or t.request_id in (select l.request_id from letters l)
),
journal as (
    delete from engine.journal d where d.ctid = any (array(select r.place from rows r))
),
replies as (
    delete from engine.replies d
    where d.ctid = any (array(
        select r.ctid from gone g cross join lateral (
            select r.ctid from engine.replies r where r.request_id = g.request_id offset 0
        ) r
    ))
),
keys as (
    delete from engine.dedup d
    where d.ctid = any (array(
        select k.ctid from gone g
        cross join lateral (
            select e.key from engine.envelopes e where e.request_id = g.request_id offset 0
        ) e
        cross join lateral (
            select k.ctid from engine.dedup k
            where k.key = e.key and k.request_id = g.request_id
            offset 0
        ) k
    ))
),
envelopes as (
    delete from engine.envelopes d
    where d.ctid = any (array(
        select e.ctid from gone g cross join lateral (
            select e.ctid from engine.envelopes e where e.request_id = g.request_id offset 0
        ) e
    ))
)
select
    (select count(*) from over) as runs,
    (
        select case when count(*) >= $4::bigint then max(l.request_id) end from looked l
    ) as last;
