-- name: waiting_rows
-- How many inbox rows wait for one execution.
select count(*) as rows
from engine.executions x
cross join lateral (
    select from engine.inbox i
    where i.group_id = x.group_id and i.shard = x.shard and i.execution = x.request_id
    offset 0
) i
where x.request_id = $1::bigint;
