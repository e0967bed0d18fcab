-- name: queue_counts
-- How many items of each of these queues wait, are put off and are admitted, and the oldest that
-- waits. $2 are the entity types of their items, $3 is the tag of an item: those that their owner
-- has not taken in are in its inbox. Reads all of them.
with items as (
    select
        q.queue, q.request_id, q.shard is not null as running, q.due_at is not null as delayed
    from engine.queue_items q
    where q.queue = any ($1::text[])
    union all
    select q.name, i.request_id, false, i.delayed
    from unnest($1::text[], $2::text[]) as u (name, entity_type)
    join engine.queues q on q.name = u.name
    cross join lateral (
        select i.request_id, i.kind, false as delayed from engine.inbox i
        where i.group_id = q.group_id and i.shard = q.shard and i.due_at is null
        union all
        select i.request_id, i.kind, i.due_at > now() from engine.inbox i
        where i.group_id = q.group_id and i.shard = q.shard and i.due_at is not null
    ) i
    cross join lateral (
        select e.entity_type, e.tag from engine.envelopes e where e.request_id = i.request_id
        offset 0
    ) e
    where i.kind = 0 and e.entity_type = u.entity_type and e.tag = $3::text
)
select
    i.queue,
    count(*) filter (where not i.running and not i.delayed)::int as waiting,
    count(*) filter (where i.delayed)::int as delayed,
    count(*) filter (where i.running)::int as running,
    min(i.request_id) filter (where not i.running and not i.delayed) as oldest
from items i
group by i.queue;
