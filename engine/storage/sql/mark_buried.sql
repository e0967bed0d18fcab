-- name: mark_buried
-- Note that no session of a dead runner is left, and that its shards are nobody's. That they still
-- have a time of acquisition tells the next owner that they were lost, not released.
with buried as (
    update engine.runners set buried_at = clock_timestamp()
    where id = $1::uuid and died_at is not null and buried_at is null
    returning id
)
update engine.shards s set runner_id = null from buried b where s.runner_id = b.id;
