-- name: follow
-- Let the exit of an execution that goes on come to another's inbox too; no row if it has ended. The
-- statement that ends it locks its row as this one does, and reads the followers as it changes that:
-- so one of the two sees the other.
update engine.executions
set followers = case
    when $2::bigint = any(followers) then followers
    else array_append(followers, $2::bigint)
end
where request_id = $1::bigint and status < 5
returning request_id;
