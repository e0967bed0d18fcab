-- name: queue_held
-- The items of a queue that are admitted or put off.
select q.request_id, q.seq, q.priority, q.key, q.shard, q.due_at, q.debounce, q.since
from engine.queue_items q
where q.queue = $1::text and (q.shard is not null or q.due_at is not null);
