-- name: release_machine
-- Let a lease run out; not at once, since ids may have been made for the milliseconds to come.
update engine.machine_ids
set expires_at = least(expires_at, clock_timestamp() + interval '1 second')
where machine = $1::smallint and holder = $2::uuid;
