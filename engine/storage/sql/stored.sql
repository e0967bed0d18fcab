-- name: stored
-- Which of these requests are stored.
select e.request_id
from unnest($1::bigint[]) as u (request_id)
cross join lateral (
    select e.request_id from engine.envelopes e where e.request_id = u.request_id offset 0
) e;
