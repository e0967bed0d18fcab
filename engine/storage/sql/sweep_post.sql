-- name: sweep_post
-- Throw away the volatile messages that nobody has fetched for so long.
with old as (
    delete from engine.post p where p.sent_at < clock_timestamp() - $1::interval
    returning p.seq
)
select count(*) as messages from old;
