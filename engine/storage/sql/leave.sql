-- name: leave
-- Sign a runner off that has ended in good order: nothing of it is left to bury.
with gone as (
    update engine.runners
    set died_at = clock_timestamp(), buried_at = clock_timestamp()
    where id = $1::uuid and died_at is null
    returning id
),
silent as (
    delete from engine.runner_heartbeats h using gone g where h.runner_id = g.id
)
update engine.shards s set runner_id = null, acquired_at = null from gone g
where s.runner_id = g.id;
