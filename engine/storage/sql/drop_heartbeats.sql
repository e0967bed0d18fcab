-- name: drop_heartbeats
-- Remove the heartbeats of steps that have ended.
delete from engine.step_heartbeats d
where d.ctid = any (array(
    select h.ctid
    from unnest($1::bigint[], $2::int[], $3::bigint[]) as s (execution, run, step)
    cross join lateral (
        select h.ctid from engine.step_heartbeats h
        where h.execution = s.execution and h.run = s.run and h.step = s.step
        offset 0
    ) h
));
