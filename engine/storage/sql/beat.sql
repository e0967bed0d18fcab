-- name: beat
-- Give a sign of life, unless declared dead, and see who else lives. A server crash empties the
-- heartbeats, so a missing one is inserted again, also a peer's: one that died with the server would
-- never be overdue. There is always one row, if need be of nobody.
with beat as (
    insert into engine.runner_heartbeats as o (runner_id, beat_at, load)
    select r.id, clock_timestamp(), case when r.id = $1::uuid then $2::text::jsonb end
    from engine.runners r
    where r.died_at is null and (
        r.id = $1::uuid
        or not exists (select from engine.runner_heartbeats h where h.runner_id = r.id)
    )
    order by r.id
    on conflict (runner_id) do update
    set
        beat_at = excluded.beat_at,
        load = case when excluded.runner_id = $1::uuid then excluded.load else o.load end
    returning runner_id, beat_at, load
)
select
    clock_timestamp() as now, pg_postmaster_start_time() as server_started,
    exists (select from beat b where b.runner_id = $1::uuid) as alive,
    exists (select from engine.post p where p.channel = $1::uuid) as post,
    (select json_agg(p)::text from engine.pauses p) as pauses,
    r.id, r.groups, r.weight, r.host, r.pid, r.version, r.types::text as types, r.machine,
    r.draining, r.started_at, coalesce(b.beat_at, h.beat_at) as beat_at, r.died_at,
    (case when b.runner_id is null then h.load else b.load end)::text as load
from (select) as always
left join engine.runners r on r.died_at is null
left join engine.runner_heartbeats h on h.runner_id = r.id
left join beat b on b.runner_id = r.id
order by r.started_at, r.id;
