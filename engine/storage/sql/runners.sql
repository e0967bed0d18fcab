-- name: runners
-- Runners that live, and those that ended within the last day.
select
    r.id, r.groups, r.weight, r.host, r.pid, r.version, r.types::text as types, r.machine,
    r.draining, r.started_at, h.beat_at, r.died_at, h.load::text as load
from engine.runners r
left join engine.runner_heartbeats h on h.runner_id = r.id
where r.died_at is null or r.died_at > now() - interval '1 day'
order by r.started_at, r.id;
