-- name: groups
-- The shard groups there are.
select g.name, g.group_id, g.shards from engine.shard_groups g order by g.name;
