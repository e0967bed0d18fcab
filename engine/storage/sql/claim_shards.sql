-- name: claim_shards
-- Begin a new epoch of shards whose locks this session has just got, if the runner is alive.
-- Its number is above all that this runner has had, of which a fail-over may have lost some.
-- A shard that a user transaction of the former owner still fences is skipped: unlock, try later.
-- One that its former owner, another runner, acquired and did not release was lost; of one that was
-- not, whatever was on trial is so no more.
with free as (
    select
        s.group_id, s.shard, u.had,
        s.acquired_at is not null and s.runner_id is distinct from $3::uuid as lost
    from engine.shards s
    join unnest($1::int[], $2::smallint[], $4::bigint[]) as u (group_id, shard, had)
        on u.group_id = s.group_id and u.shard = s.shard
    where exists (select from engine.runners r where r.id = $3::uuid and r.died_at is null)
    order by s.group_id, s.shard
    for no key update of s skip locked
),
claimed as (
    update engine.shards s
    set epoch = greatest(s.epoch, f.had) + 1, runner_id = $3::uuid, acquired_at = clock_timestamp(),
        server_started_at = pg_postmaster_start_time()
    from free f
    where s.group_id = f.group_id and s.shard = f.shard
    returning s.group_id, s.shard, s.epoch, f.lost
),
ended as (
    update engine.inbox d
    set trial = false
    where d.ctid = any (array(
        select i.ctid
        from claimed c
        cross join lateral (
            select i.ctid from engine.inbox i
            where i.group_id = c.group_id and i.shard = c.shard and i.trial
            offset 0
        ) i
        where not c.lost
    ))
),
cleared as (
    update engine.executions d
    set trial = false
    where d.ctid = any (array(
        select x.ctid
        from claimed c
        cross join lateral (
            select x.ctid from engine.executions x
            where x.group_id = c.group_id and x.shard = c.shard and x.trial
            offset 0
        ) x
        where not c.lost
    ))
)
select c.group_id, c.shard, c.epoch, c.lost from claimed c;
