-- name: entities
-- A page of the entities that have a state or waiting requests, by type and id, of one type, of one
-- id, behind one. $6 is the number of the entity, if one is asked for. Reads the whole inbox.
with waiting as (
    select
        e.entity_type collate "C" as entity_type, e.entity_id collate "C" as entity_id,
        min(e.group_id) as group_id, min(e.shard) as shard, count(*) as waiting,
        min(e.request_id) as oldest
    from engine.inbox i
    cross join lateral (
        select e.* from engine.envelopes e where e.request_id = i.request_id offset 0
    ) e
    where i.kind = 0 and i.entity is not null and ($6::bigint is null or i.entity = $6::bigint)
        and ($1::text is null or e.entity_type = $1::text)
        and ($2::text is null or e.entity_id = $2::text)
        and (e.entity_type collate "C", e.entity_id collate "C") > ($3::text, $4::text)
    group by 1, 2
    order by 1, 2
    limit $5::bigint
),
named as (
    select w.entity_type, w.entity_id from waiting w
    union
    (
        select s.entity_type, s.entity_id from engine.entity_states s
        where ($1::text is null or s.entity_type = $1::text)
            and ($2::text is null or s.entity_id = $2::text)
            and (s.entity_type, s.entity_id) > ($3::text, $4::text)
        order by s.entity_type, s.entity_id
        limit $5::bigint
    )
    order by entity_type, entity_id
    limit $5::bigint
)
select
    n.entity_type, n.entity_id, coalesce(s.group_id, w.group_id) as group_id,
    coalesce(s.shard, w.shard) as shard, h.runner_id, coalesce(w.waiting, 0) as waiting, w.oldest,
    s.version, s.saved_at
from named n
left join waiting w on w.entity_type = n.entity_type and w.entity_id = n.entity_id
left join lateral (
    select s.* from engine.entity_states s
    where s.entity_type = n.entity_type and s.entity_id = n.entity_id
    offset 0
) s on true
left join engine.shards h
    on h.group_id = coalesce(s.group_id, w.group_id) and h.shard = coalesce(s.shard, w.shard)
order by n.entity_type, n.entity_id;
