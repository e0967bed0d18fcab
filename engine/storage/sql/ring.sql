-- name: ring
-- Notify the owners that shards have now of what is there to deliver and of chunks of streams that
-- were taken, the processes that wait for replies, and everybody.
-- Payloads are cut to stay below the server's 8000 bytes. In somebody else's transaction ($8), which
-- a full queue of notifications would keep from committing, nothing is said once it is half full; and
-- since nobody knows for how long it has been open, its shards are to be read from the beginning.
with owners as (
    select
        'outlast_' || replace(s.runner_id::text, '-', '') as channel,
        s.group_id || ':' || s.shard as item,
        row_number() over (partition by s.runner_id order by s.group_id, s.shard) / 400 as part
    from unnest($1::int[], $2::smallint[]) as u (group_id, shard)
    join engine.shards s on s.group_id = u.group_id and s.shard = u.shard
    where s.runner_id is not null
),
awaited as (
    delete from engine.waiters w
    where w.ctid = any (array(
        select w.ctid
        from unnest($3::bigint[]) as u (request_id)
        cross join lateral (
            select w.ctid from engine.waiters w where w.request_id = u.request_id offset 0
        ) w
    ))
    returning w.request_id, w.channel
),
waiting as (
    select
        a.channel,
        a.request_id::text as item,
        row_number() over (partition by a.channel order by a.request_id) / 380 as part
    from awaited a
),
takers as (
    select
        'outlast_' || replace(s.runner_id::text, '-', '') as channel,
        u.request_id::text as item,
        row_number() over (partition by s.runner_id order by u.request_id) / 380 as part
    from unnest($5::int[], $6::smallint[], $7::bigint[]) as u (group_id, shard, request_id)
    join engine.shards s on s.group_id = u.group_id and s.shard = u.shard
    where s.runner_id is not null
),
bells as (
    select
        o.channel,
        case when $8::bool then 'o:' else 's:' end || string_agg(o.item, ',') as payload
    from owners o group by o.channel, o.part
    union all
    select w.channel, 'r:' || string_agg(w.item, ',') from waiting w group by w.channel, w.part
    union all
    select k.channel, 'a:' || string_agg(k.item, ',') from takers k group by k.channel, k.part
    union all
    select c.channel, 't' from unnest($4::text[]) as c (channel)
)
select count(pg_notify(b.channel, b.payload)) from bells b
where not $8::bool or pg_notification_queue_usage() < 0.5;
