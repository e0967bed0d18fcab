-- name: start_times
-- When executions are to start, of those that are not to start at once.
select e.request_id, e.deliver_at
from unnest($1::bigint[]) as u (request_id)
cross join lateral (
    select e.request_id, e.deliver_at from engine.envelopes e where e.request_id = u.request_id
    offset 0
) e
where e.deliver_at is not null;
