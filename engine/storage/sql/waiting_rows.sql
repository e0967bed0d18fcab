-- name: waiting_rows
-- How many inbox rows wait for one execution.
select count(*) as rows
from (
    select from engine.inbox i
    where i.request_id = $1::bigint and i.execution = $1::bigint
    union all
    select from engine.inbox i
    where i.execution = $1::bigint and i.execution <> i.request_id
) i;
