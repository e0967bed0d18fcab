-- name: streams
-- How far streams have come: the last chunk that is stored, and the last one acknowledged.
select u.request_id, coalesce(r.sequence, -1) as stored, coalesce(a.sequence, -1) as acked
from unnest($1::bigint[]) as u (request_id)
left join lateral (
    select a.sequence from engine.acks a where a.request_id = u.request_id offset 0
) a on true
left join lateral (
    select r.sequence from engine.replies r
    where r.request_id = u.request_id and r.sequence > coalesce(a.sequence, -1) and r.kind = 0
    order by r.sequence desc
    limit 1
) r on true;
