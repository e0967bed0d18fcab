-- name: queue_lines
-- How many items of a queue wait, by priority and key.
select q.priority, q.key, count(*)::int as count
from engine.queue_items q
where q.queue = $1::text and q.shard is null and q.due_at is null
group by q.priority, q.key;
