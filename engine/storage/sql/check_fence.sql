-- name: check_fence
-- Hold an owner to its epoch until the transaction ends: the next owner cannot begin before. The lane
-- that took the shard must be open on this very server: a standby that was promoted may lack what was
-- written last, the execution or its steps, and its owner hears of that by the end of the lane alone.
-- (The name is null to a login that may not see it.)
select 1 from engine.shards s
where s.group_id = $1::int and s.shard = $2::smallint and s.epoch = $3::bigint
    and s.runner_id = $4::uuid
    and exists (
        select from pg_stat_get_activity(s.backend_pid) a
        where a.application_name is null
            or a.application_name like 'outlast:' || $4::uuid::text || ':lane-%'
    )
for share of s;
