-- name: write_fires
-- Note what became of instants of schedules; what was noted first stays.
insert into engine.schedule_fires (schedule, instant, outcome, request_id, manual, at)
select u.schedule, u.instant, u.outcome, u.request_id, u.manual, u.at
from unnest(
    $1::text[], $2::timestamptz[], $3::smallint[], $4::bigint[], $5::bool[], $6::timestamptz[]
) with ordinality as u (schedule, instant, outcome, request_id, manual, at, nth)
order by u.schedule, u.instant, u.nth
on conflict (schedule, instant) do nothing;
