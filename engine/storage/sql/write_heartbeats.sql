-- name: write_heartbeats
-- Note what running steps have reported, each once.
insert into engine.step_heartbeats as h (
    execution, run, step, name, ordinal, attempt, at, details
)
select u.execution, u.run, u.step, u.name, u.ordinal, u.attempt, u.at, u.details
from unnest(
    $1::bigint[], $2::int[], $3::bigint[], $4::text[], $5::int[], $6::int[], $7::timestamptz[],
    $8::bytea[]
) as u (execution, run, step, name, ordinal, attempt, at, details)
order by u.execution, u.run, u.step
on conflict (execution, run, step) do update
set attempt = excluded.attempt, at = excluded.at, details = excluded.details;
