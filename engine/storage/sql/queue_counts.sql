-- name: queue_counts
-- How many items of each of these queues wait, are admitted and are put off, and the oldest that
-- waits. Reads all of their items.
select
    q.queue,
    count(*) filter (where q.shard is null and q.due_at is null)::int as waiting,
    count(q.shard)::int as running,
    count(q.due_at)::int as later,
    min(q.request_id) filter (where q.shard is null and q.due_at is null) as oldest
from engine.queue_items q
where q.queue = any ($1::text[])
group by q.queue;
