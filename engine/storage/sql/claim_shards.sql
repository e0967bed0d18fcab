-- name: claim_shards
-- Begin a new epoch of shards whose locks this session has just got, if the runner is alive.
-- A shard that a user transaction of the former owner still fences is skipped: unlock, try later.
with free as (
    select s.group_id, s.shard
    from engine.shards s
    join unnest($1::int[], $2::smallint[]) as u (group_id, shard)
        on u.group_id = s.group_id and u.shard = s.shard
    where exists (select from engine.runners r where r.id = $3::uuid and r.died_at is null)
    order by s.group_id, s.shard
    for no key update of s skip locked
)
update engine.shards s
set epoch = s.epoch + 1, runner_id = $3::uuid, acquired_at = clock_timestamp()
from free f
where s.group_id = f.group_id and s.shard = f.shard
returning s.group_id, s.shard, s.epoch;
