-- name: acknowledge
-- Note how far streams were taken, each once, delete the chunks up to there, and say where that is.
-- Of chunks that were never stored nothing is taken. With a channel its process waits for what
-- follows. What was taken before is not looked at: its rows may be long in going when something old
-- is still being read.
with asked as (
    select u.request_id, u.sequence, coalesce(k.sequence, -1) as before
    from unnest($1::bigint[], $2::int[]) as u (request_id, sequence)
    left join lateral (
        select k.sequence from engine.acks k where k.request_id = u.request_id offset 0
    ) k on true
),
taken as (
    select a.request_id, a.before, least(a.sequence, r.sequence) as sequence
    from asked a
    cross join lateral (
        select r.sequence from engine.replies r
        where r.request_id = a.request_id and r.sequence > a.before and r.kind = 0
        order by r.sequence desc
        limit 1
    ) r
    where a.sequence > a.before
),
noted as (
    insert into engine.acks as k (request_id, sequence)
    select t.request_id, t.sequence from taken t
    order by t.request_id
    on conflict (request_id) do update set sequence = excluded.sequence
    where excluded.sequence > k.sequence
),
deleted as (
    delete from engine.replies d
    where d.ctid = any (array(
        select r.ctid
        from taken t
        cross join lateral (
            select r.ctid from engine.replies r
            where r.request_id = t.request_id and r.kind = 0
                and r.sequence > t.before and r.sequence <= t.sequence
            offset 0
        ) r
    ))
),
registered as (
    insert into engine.waiters (request_id, channel)
    select a.request_id, $3::text from asked a
    where $3::text is not null
    order by a.request_id
    on conflict do nothing
)
select a.request_id, coalesce(t.sequence, a.before) as acked
from asked a
left join taken t on t.request_id = a.request_id;
