-- name: write_fires
-- Note what became of instants of schedules; what was noted first stays, but for an instant that was
-- left out and is started later.
insert into engine.schedule_fires as f (schedule, instant, outcome, request_id, manual, at)
select distinct on (u.schedule, u.instant)
    u.schedule, u.instant, u.outcome, u.request_id, u.manual, u.at
from unnest(
    $1::text[], $2::timestamptz[], $3::smallint[], $4::bigint[], $5::bool[], $6::timestamptz[]
) with ordinality as u (schedule, instant, outcome, request_id, manual, at, nth)
order by u.schedule, u.instant, u.outcome <> 0, u.nth
on conflict (schedule, instant) do update
set
    outcome = excluded.outcome,
    request_id = excluded.request_id,
    manual = excluded.manual,
    at = excluded.at
where f.outcome <> 0 and excluded.outcome = 0;
