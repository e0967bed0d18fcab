-- name: unlock_shards
-- Give advisory locks back.
select s.group_id, s.shard from unnest($1::int[], $2::int[]) as s (group_id, shard)
where pg_advisory_unlock(s.group_id, s.shard);
