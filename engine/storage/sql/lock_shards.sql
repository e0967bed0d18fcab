-- name: lock_shards
-- Take the advisory locks that are free. Never ask for one this session holds: they stack.
select s.group_id, s.shard from unnest($1::int[], $2::int[]) as s (group_id, shard)
where pg_try_advisory_lock(s.group_id, s.shard);
