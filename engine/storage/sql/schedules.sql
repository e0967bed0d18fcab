-- name: schedules
-- Schedules of these names, or all, each with the owner of its shard.
select
    s.name, s.group_id, s.shard, s.schedule, s.timezone, s.settings::text as settings, s.paused,
    s.done_until, s.next_at, s.buffered, s.running, h.runner_id
from engine.schedules s
left join engine.shards h on h.group_id = s.group_id and h.shard = s.shard
where $1::text[] is null or s.name = any ($1::text[])
order by s.name collate "C";
