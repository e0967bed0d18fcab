-- name: lease_machine
-- Lease a machine id that nobody holds, drawn at random so that few processes want the same one.
-- No row means that another process was faster, or that all are held.
insert into engine.machine_ids as m (machine, holder, expires_at)
select n, $1::uuid, clock_timestamp() + $2::interval
from generate_series(0, $3::int - 1) as n
where not exists (
    select from engine.machine_ids h where h.machine = n and h.expires_at >= clock_timestamp()
)
order by random()
limit 1
on conflict (machine) do update
set holder = excluded.holder, expires_at = excluded.expires_at
where m.expires_at < clock_timestamp()
returning m.machine, m.expires_at, clock_timestamp() as now;
