-- name: bury
-- Declare a runner dead whose last heartbeat is too old, by the word of one that lives. One peer
-- wins; a runner without a heartbeat is unknown, not dead.
update engine.runners r
set died_at = clock_timestamp()
from engine.runner_heartbeats h
where r.id = $1::uuid and r.died_at is null
    and h.runner_id = r.id and h.beat_at < clock_timestamp() - $3::interval
    and exists (select from engine.runners b where b.id = $2::uuid and b.died_at is null)
returning r.id;
