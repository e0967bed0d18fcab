-- name: prune
-- Delete executions that ended before a time, with all they were told and all they have sent; but
-- for those that somebody still has to hear of: an inbox row speaks of them, or a schedule. (Within
-- coalesce, so that each is found by its id, and never among all that have ended.)
with doomed as (
    select x.request_id
    from unnest($1::bigint[]) as u (request_id)
    cross join lateral (
        select x.request_id from engine.executions x
        where x.request_id = u.request_id
            and coalesce(x.status > 4 and x.finished_at <= $2::timestamptz, false)
            and x.request_id not in (select unnest(s.running) from engine.schedules s)
        for update skip locked
    ) x
    left join lateral (
        select true as waits from engine.inbox i where i.request_id = x.request_id limit 1
    ) a on true
    left join lateral (
        select true as waits from engine.inbox i
        where i.execution = x.request_id and i.execution <> i.request_id
        limit 1
    ) b on true
    where a.waits is null and b.waits is null
),
told as (
    select distinct j.source as request_id
    from doomed d
    cross join lateral (
        select j.source from engine.journal j
        where j.execution = d.request_id and j.source is not null
        offset 0
    ) j
    left join lateral (
        select true as waits from engine.inbox i where i.request_id = j.source limit 1
    ) a on true
    where a.waits is null
        and j.source not in (select unnest(s.running) from engine.schedules s)
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
    select d.request_id from doomed d
    union
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
    delete from engine.journal d
    where d.ctid = any (array(
        select j.ctid from doomed o cross join lateral (
            select j.ctid from engine.journal j where j.execution = o.request_id offset 0
        ) j
    ))
),
heartbeats as (
    delete from engine.step_heartbeats d
    where d.ctid = any (array(
        select h.ctid from doomed o cross join lateral (
            select h.ctid from engine.step_heartbeats h where h.execution = o.request_id offset 0
        ) h
    ))
),
replies as (
    delete from engine.replies d
    where d.ctid = any (array(
        select r.ctid from gone g cross join lateral (
            select r.ctid from engine.replies r where r.request_id = g.request_id offset 0
        ) r
    ))
),
acks as (
    delete from engine.acks d
    where d.ctid = any (array(
        select a.ctid from gone g cross join lateral (
            select a.ctid from engine.acks a where a.request_id = g.request_id offset 0
        ) a
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
),
executions as (
    delete from engine.executions d
    where d.ctid = any (array(
        select x.ctid from doomed o cross join lateral (
            select x.ctid from engine.executions x where x.request_id = o.request_id offset 0
        ) x
    ))
    returning d.request_id
)
select x.request_id from executions x;
