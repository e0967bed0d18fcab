-- name: finished
-- Executions that ended before a time and after another, by workflow and status, longest ago first.
select x.request_id, x.finished_at, u.nth
from unnest($1::text[], $2::smallint[], $3::timestamptz[], $4::timestamptz[])
    with ordinality as u (workflow, status, after, until, nth)
cross join lateral (
    select x.request_id, x.finished_at from engine.executions x
    where x.workflow = u.workflow and x.status = u.status
        and x.finished_at > u.after and x.finished_at <= u.until
    order by x.finished_at
    limit $5::bigint
) x
order by u.nth, x.finished_at;
