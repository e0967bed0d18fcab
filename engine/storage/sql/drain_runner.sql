-- name: drain_runner
-- Say that a runner takes no shards any more.
update engine.runners set draining = true where id = $1::uuid and died_at is null;
