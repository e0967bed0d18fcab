-- name: heartbeats
-- What running steps of some executions last reported.
select h.execution, h.run, h.name, h.ordinal, h.attempt, h.at, h.details
from unnest($1::bigint[]) as u (execution)
cross join lateral (
    select h.* from engine.step_heartbeats h where h.execution = u.execution
    offset 0
) h
order by h.execution, h.run, h.name collate "C", h.ordinal;
