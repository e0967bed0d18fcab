-- name: check_fence
-- Hold an owner to its epoch until the transaction ends: the next owner cannot begin before.
select 1 from engine.shards
where group_id = $1::int and shard = $2::smallint and epoch = $3::bigint and runner_id = $4::uuid
for share;
