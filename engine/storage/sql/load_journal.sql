-- name: load_journal
-- The journals of some executions' current runs, in order.
select
    j.execution, j.run, j.position, j.kind, j.outcome, j.attempt, j.ordinal, j.digest, j.source,
    j.at, j.started_at, j.due_at, j.name, j.payload
from unnest($1::bigint[], $2::int[]) as u (execution, run)
cross join lateral (
    select j.* from engine.journal j where j.execution = u.execution and j.run = u.run
    offset 0
) j
order by j.execution, j.position;
