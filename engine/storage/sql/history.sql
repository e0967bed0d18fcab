-- name: history
-- All journal rows of one execution, run by run, in order.
select
    j.execution, j.run, j.position, j.kind, j.outcome, j.attempt, j.ordinal, j.digest, j.source,
    j.at, j.started_at, j.due_at, j.name, j.payload
from engine.journal j where j.execution = $1::bigint
order by j.run, j.position;
