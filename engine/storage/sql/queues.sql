-- name: queues
-- Queues by name, of these names or all of them, and who owns their shards now.
select q.name, q.group_id, q.shard, q.settings::text as settings, q.paused, q.next_at, h.runner_id
from engine.queues q
left join engine.shards h on h.group_id = q.group_id and h.shard = q.shard
where $1::text[] is null or q.name = any ($1::text[])
order by q.name;
