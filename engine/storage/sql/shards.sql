-- name: shards
-- Every shard, with its owner now.
select s.group_id, s.shard, s.epoch, s.runner_id, s.acquired_at
from engine.shards s order by s.group_id, s.shard;
