-- name: follow
-- Let the exit of an execution that goes on come to another's inbox too; no row if it has ended. The
-- statement that ends it locks its row as this one does, and reads the followers as it changes that:
-- so one of the two sees the other. With each goes the group and shard that it is in, since that
-- statement may have begun before its follower.
update engine.executions x
set followers = case
    when f.request_id = any(x.followers) then x.followers
    else x.followers || array[f.request_id, f.group_id, f.shard]
end
from engine.executions f
where x.request_id = $1::bigint and coalesce(x.status < 5, false) and f.request_id = $2::bigint
returning x.request_id;
