-- name: waiting_rows
-- How many inbox rows wait for one execution.
select count(*) as rows
from engine.executions x
join engine.inbox i on i.group_id = x.group_id and i.shard = x.shard and i.execution = x.request_id
where x.request_id = $1::bigint;
