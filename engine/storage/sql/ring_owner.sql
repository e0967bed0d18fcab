-- name: ring_owner
-- As ring, for one shard alone.
select pg_notify(
    'outlast_' || replace(s.runner_id::text, '-', ''), 's:' || s.group_id || ':' || s.shard
)
from engine.shards s
where s.group_id = $1::int and s.shard = $2::smallint and s.runner_id is not null;
