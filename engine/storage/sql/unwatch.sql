-- name: unwatch
-- Register a process no more as one that waits for replies of these requests.
delete from engine.waiters w
where w.channel = $2::text
    and w.ctid = any (array(
        select w.ctid
        from unnest($1::bigint[]) as u (request_id)
        cross join lateral (
            select w.ctid from engine.waiters w
            where w.request_id = u.request_id and w.channel = $2::text
            offset 0
        ) w
    ));
