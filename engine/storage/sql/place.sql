-- name: place
-- Where a request is that waits for an entity or is an item of a queue, and what goes before it: of
-- an item those of its line, and those of its key that run; of a message those for its entity in
-- its inbox. Nothing if it has ended. Reads the shard's inbox.
with asked as (
    select
        e.request_id, e.group_id, e.shard as home, coalesce(q.shard, e.shard) as shard,
        e.entity_type, e.entity_id, e.tag, coalesce(q.due_at, i.due_at) as due_at,
        q.queue, q.priority, q.key, q.shard is not null as admitted,
        coalesce(q.seq, i.seq) as seq, i.entity
    from engine.envelopes e
    left join engine.queue_items q on q.request_id = e.request_id
    left join engine.inbox i
        on i.request_id = e.request_id and i.kind = 0 and i.entity is not null
    where e.request_id = $1::bigint and coalesce(q.seq, i.seq) is not null
        and not exists (
            select from engine.replies r where r.request_id = e.request_id and r.kind <> 0
        )
),
others as (
    select o.request_id, o.seq, o.shard, o.shard is not null as runs
    from asked a
    join engine.queue_items o on o.queue = a.queue and o.key = a.key
    where not a.admitted and o.request_id <> a.request_id and (
        o.shard is not null
        or o.due_at is null and o.priority = a.priority and o.seq < a.seq
    )
    union all
    select o.request_id, o.seq, o.shard, false
    from asked a
    cross join lateral (
        select i.* from engine.inbox i
        where i.group_id = a.group_id and i.shard = a.shard and i.due_at is null
        union all
        select i.* from engine.inbox i
        where i.group_id = a.group_id and i.shard = a.shard and i.due_at <= now()
    ) o
    where a.queue is null and o.entity = a.entity and o.kind = 0 and o.seq < a.seq
)
select
    a.request_id, a.group_id, a.home as shard, a.entity_type, a.entity_id, a.tag, h.runner_id,
    case when a.due_at > now() then a.due_at end as due_at, a.key, a.admitted,
    (select count(*) from others o where not o.runs) as ahead,
    (select count(*) from others o where o.runs) as running,
    f.request_id as holder, e.entity_id as holder_id, e.tag as holder_tag,
    s.runner_id as holder_runner
from asked a
left join engine.shards h on h.group_id = a.group_id and h.shard = a.shard
left join lateral (
    select o.request_id, o.shard from others o
    where o.runs = (a.queue is not null)
    order by o.seq
    limit 1
) f on true
left join engine.envelopes e on e.request_id = f.request_id
left join engine.shards s on s.group_id = a.group_id and s.shard = f.shard;
