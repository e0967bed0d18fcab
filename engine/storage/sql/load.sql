-- name: load
-- Executions with the requests that started them, for the owner to replay.
select
    e.request_id, e.group_id, e.shard, e.entity_type, e.entity_id, e.tag, e.uninterruptible,
    e.reply_execution, e.reply_group_id, e.reply_shard, e.deliver_at, e.key, e.headers, e.payload,
    x.workflow, x.execution_id, x.status, x.run, x.version, x.created_at, x.started_at,
    x.finished_at, x.wake_at, x.waiting, x.parent, x.attributes::text as attributes, x.error, x.failures, s.runner_id
from unnest($1::bigint[]) with ordinality as u (request_id, nth)
cross join lateral (
    select x.* from engine.executions x where x.request_id = u.request_id offset 0
) x
cross join lateral (
    select e.* from engine.envelopes e where e.request_id = u.request_id offset 0
) e
left join engine.shards s on s.group_id = x.group_id and s.shard = x.shard
order by u.nth;
