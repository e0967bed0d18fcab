-- name: prolong_machine
-- Prolong the lease of a machine id, if it is still its holder's.
update engine.machine_ids
set expires_at = clock_timestamp() + $3::interval
where machine = $1::smallint and holder = $2::uuid
returning machine, expires_at, clock_timestamp() as now;
