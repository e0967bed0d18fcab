-- name: check_fence
-- Hold an owner to its epoch until the transaction ends: the next owner cannot begin before. It took
-- the shard of this very server: a standby that was promoted may lack what was written last, the
-- execution or its steps, and the owner hears of that by the end of its lane alone.
select 1 from engine.shards
where group_id = $1::int and shard = $2::smallint and epoch = $3::bigint and runner_id = $4::uuid
    and server_started_at = pg_postmaster_start_time()
for share;
