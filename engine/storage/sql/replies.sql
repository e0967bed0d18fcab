-- name: replies
-- Replies of some requests behind a sequence, at most a page of each (null: all): chunks in order,
-- each request's exit last.
select r.request_id, r.sequence, r.kind, r.payload
from unnest($1::bigint[], $2::int[], $3::int[]) as u (request_id, after, page)
cross join lateral (
    select r.request_id, r.sequence, r.kind, r.payload
    from engine.replies r where r.request_id = u.request_id and r.sequence > u.after
    order by r.sequence
    limit u.page
) r
order by r.request_id, r.sequence;
