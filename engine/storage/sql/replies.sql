-- name: replies
-- All stored replies of some requests, chunks in sequence, each request's exit last.
select r.request_id, r.sequence, r.kind, r.payload
from unnest($1::bigint[]) as u (request_id)
cross join lateral (
    select r.request_id, r.sequence, r.kind, r.payload
    from engine.replies r where r.request_id = u.request_id
    offset 0
) r
order by r.request_id, r.sequence;
