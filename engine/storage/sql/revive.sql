-- name: revive
-- Take back the exits of requests that ended in a defect, and put the requests into their inboxes
-- again. $2 are the numbers of their entities.
with asked as (
    select u.request_id, u.entity, u.nth
    from unnest($1::bigint[], $2::bigint[]) with ordinality as u (request_id, entity, nth)
),
taken as (
    delete from engine.replies d
    where d.ctid = any (array(
        select r.ctid
        from asked a
        cross join lateral (
            select r.ctid from engine.replies r
            where r.request_id = a.request_id and r.kind = 5
            offset 0
        ) r
    ))
    returning d.request_id
)
insert into engine.inbox (group_id, shard, kind, request_id, entity, due_at)
select e.group_id, e.shard, 0, e.request_id, a.entity, e.deliver_at
from asked a
cross join lateral (
    select e.* from engine.envelopes e where e.request_id = a.request_id offset 0
) e
where (a.request_id in (select t.request_id from taken t)) is true
order by a.nth;
