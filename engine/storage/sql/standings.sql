-- name: standings
-- How many executions that have not ended stand where. Reads all there are: for people only.
select
    x.workflow, x.version, x.status, s.runner_id, count(*) as executions,
    count(*) filter (where x.status = 3 and starts_with(x.waiting, $1::text)) as misfits
from engine.executions x
left join engine.shards s on s.group_id = x.group_id and s.shard = x.shard
where x.status < 5
group by x.workflow, x.version, x.status, s.runner_id
order by x.workflow, x.version, x.status;
