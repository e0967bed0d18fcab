-- name: states
-- The stored states of some entities.
select s.entity_type, s.entity_id, s.group_id, s.shard, s.version, s.payload, s.saved_at
from unnest($1::text[], $2::text[]) as u (entity_type, entity_id)
cross join lateral (
    select s.* from engine.entity_states s
    where s.entity_type = u.entity_type and s.entity_id = u.entity_id
    offset 0
) s;
