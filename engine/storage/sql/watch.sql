-- name: watch
-- Register a process as one that waits for replies of these requests.
insert into engine.waiters (request_id, channel)
select distinct u.request_id, $2::text from unnest($1::bigint[]) as u (request_id)
order by u.request_id
on conflict do nothing;
