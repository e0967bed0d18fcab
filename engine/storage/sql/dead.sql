-- name: dead
-- Which of these requests ended in a defect, and whose they are. That of an execution is no message
-- that could be delivered again: the execution itself is retried.
select r.request_id, e.group_id, e.shard, e.entity_type, e.entity_id
from unnest($1::bigint[]) with ordinality as u (request_id, nth)
cross join lateral (
    select r.request_id from engine.replies r
    where r.request_id = u.request_id and r.kind = 5
    limit 1
) r
cross join lateral (
    select e.group_id, e.shard, e.entity_type, e.entity_id from engine.envelopes e
    where e.request_id = u.request_id
    offset 0
) e
left join lateral (
    select x.request_id from engine.executions x where x.request_id = u.request_id offset 0
) x on true
where x.request_id is null
order by u.nth;
