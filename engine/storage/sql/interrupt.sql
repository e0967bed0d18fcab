-- name: interrupt
-- Put an interrupt into the inbox of each request that is stored and has no exit.
insert into engine.inbox (group_id, shard, kind, request_id, execution)
select e.group_id, e.shard, 2, e.request_id, x.request_id
from unnest($1::bigint[]) with ordinality as u (request_id, nth)
cross join lateral (
    select e.request_id, e.group_id, e.shard from engine.envelopes e
    where e.request_id = u.request_id
    offset 0
) e
left join lateral (
    select x.request_id from engine.executions x where x.request_id = u.request_id offset 0
) x on true
left join lateral (
    select r.kind from engine.replies r
    where r.request_id = u.request_id and r.kind <> 0
    limit 1
) r on true
where r.kind is null
order by u.nth
returning request_id;
