-- name: fires
-- The latest instants of one schedule that were dealt with.
select f.schedule, f.instant, f.outcome, f.request_id, f.manual, f.at
from engine.schedule_fires f where f.schedule = $1::text
order by f.instant desc
limit $2::bigint;
