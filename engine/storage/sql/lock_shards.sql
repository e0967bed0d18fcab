-- name: lock_shards
-- Take the advisory locks that are free, if the runner is alive: a session that a dead one opens
-- after its others were ended is never looked for again, and would keep what it locked for good.
-- Never ask for one this session holds: they stack.
select s.group_id, s.shard from unnest($1::int[], $2::int[]) as s (group_id, shard)
where case
    when exists (select from engine.runners r where r.id = $3::uuid and r.died_at is null)
        then pg_try_advisory_lock(s.group_id, s.shard)
    end;
