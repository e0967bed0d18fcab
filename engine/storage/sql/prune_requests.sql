-- name: prune_requests
-- Delete requests to entities of a group that were due before a time and are done with, those that
-- ended as a defect before another. Not those that an inbox row, a queue or a schedule speaks of,
-- and not those of executions: they go with these. Looks at some behind one, and tells how far it
-- came if there may be more.
with looked as (
    select
        e.request_id, e.group_id, e.entity_type, e.reply_execution, e.key,
        coalesce(
            e.deliver_at,
            '2025-01-01T00:00Z'::timestamptz + (e.request_id >> 22) * interval '1 millisecond'
        ) as due_at
    from engine.envelopes e
    where e.request_id > $2::bigint and e.request_id < $3::bigint
    order by e.request_id
    limit $6::bigint
),
letters as (
    -- INVARIANT sent-again: who sends a dead letter again deletes its exit. What that one has, or has
    -- had since this statement began, is not found here, and who comes later finds it deleted.
    select r.request_id
    from looked l
    cross join lateral (
        select r.request_id from engine.replies r
        where r.request_id = l.request_id and r.kind = 5
        for update skip locked
    ) r
    where l.due_at <= $5::timestamptz
),
gone as (
    select l.request_id, l.key
    from looked l
    left join lateral (
        select true as dead from engine.replies r
        where r.request_id = l.request_id and r.kind = 5
        offset 0
    ) x on true
    left join lateral (
        select true as waits from engine.inbox i where i.request_id = l.request_id limit 1
    ) a on true
    left join lateral (
        select true as begins from engine.executions x where x.workflow = l.entity_type limit 1
    ) b on true
    left join lateral (
        select true as asked from engine.executions x where x.request_id = l.reply_execution limit 1
    ) c on true
    where (
            x.dead is null and l.due_at <= $4::timestamptz
            or l.request_id in (select d.request_id from letters d)
        )
        -- What is to be delivered later yet is passed over before anything is looked up of it.
        and l.due_at <= greatest($4::timestamptz, $5::timestamptz)
        and l.group_id = $1::int
        and a.waits is null
        and l.request_id not in (select unnest(s.running) from engine.schedules s)
        and not exists (select from engine.queue_items q where q.request_id = l.request_id)
        and b.begins is null
        and c.asked is null
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
        select k.ctid from gone g cross join lateral (
            select k.ctid from engine.dedup k
            where k.key = g.key and k.request_id = g.request_id
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
    (select count(*) from gone) as count,
    (
        select case when count(*) >= $6::bigint then max(l.request_id) end from looked l
    ) as last;
