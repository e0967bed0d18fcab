-- name: write_schedules
-- Write schedules as they stand now, each once. What each still runs comes as one text of ids.
insert into engine.schedules as s (
    group_id, shard, name, schedule, timezone, settings, paused, done_until, next_at, buffered,
    running
)
select
    u.group_id, u.shard, u.name, u.schedule, u.timezone, u.settings::jsonb, u.paused, u.done_until,
    u.next_at, u.buffered, u.running::bigint[]
from unnest(
    $1::int[], $2::smallint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bool[],
    $8::timestamptz[], $9::timestamptz[], $10::timestamptz[], $11::text[]
) as u (
    group_id, shard, name, schedule, timezone, settings, paused, done_until, next_at, buffered,
    running
)
order by u.name
on conflict (name) do update
set
    group_id = excluded.group_id,
    shard = excluded.shard,
    schedule = excluded.schedule,
    timezone = excluded.timezone,
    settings = excluded.settings,
    paused = excluded.paused,
    done_until = excluded.done_until,
    next_at = excluded.next_at,
    buffered = excluded.buffered,
    running = excluded.running;
