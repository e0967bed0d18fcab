-- name: find
-- The execution whose run request has this deduplication key.
select
    x.request_id, x.workflow, x.execution_id, x.group_id, x.shard, x.status, x.run, x.version,
    x.created_at, x.started_at, x.finished_at, x.wake_at, x.waiting, x.parent,
    x.attributes::text as attributes, x.error, x.failures, s.runner_id
from engine.dedup d
cross join lateral (
    select x.* from engine.executions x where x.request_id = d.request_id offset 0
) x
left join engine.shards s on s.group_id = x.group_id and s.shard = x.shard
where d.key = $1::text;
