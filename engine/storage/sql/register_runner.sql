-- name: register_runner
-- Enter a runner with its first heartbeat; no row when it has been declared dead.
with entered as (
    insert into engine.runners as r (
        id, groups, weight, host, pid, version, types, machine, draining
    )
    values (
        $1::uuid, $2::text[], $3::float8, $4::text, $5::int, $6::text, $7::text::jsonb,
        $8::smallint, $9::bool
    )
    on conflict (id) do update
    set
        groups = excluded.groups,
        weight = excluded.weight,
        host = excluded.host,
        pid = excluded.pid,
        version = excluded.version,
        types = excluded.types,
        machine = excluded.machine,
        draining = excluded.draining
    where r.died_at is null
    returning id
)
insert into engine.runner_heartbeats (runner_id, beat_at)
select e.id, clock_timestamp() from entered e
on conflict (runner_id) do update set beat_at = excluded.beat_at
returning runner_id;
