-- name: disclaim_shards
-- Say that a runner owns these shards no more, before their locks are given back.
update engine.shards s
set runner_id = null, acquired_at = null, server_started_at = null
from unnest($1::int[], $2::smallint[]) as u (group_id, shard)
where s.group_id = u.group_id and s.shard = u.shard and s.runner_id = $3::uuid;
