-- name: post
-- Send volatile messages, in order, to channels or to the owners that shards have now, and notify
-- them; not once the queue of notifications is half full, since a full one would keep them from being
-- sent at all, and heartbeats tell of them too. One without a receiver is not sent.
with given as (
    select * from unnest(
        $1::uuid[], $2::int[], $3::smallint[], $4::smallint[], $5::bigint[], $6::bytea[]
    ) with ordinality as g (channel, group_id, shard, kind, request_id, body, nth)
),
addressed as (
    select g.*, coalesce(g.channel, s.runner_id) as receiver, s.epoch
    from given g
    left join lateral (
        select s.runner_id, s.epoch from engine.shards s
        where s.group_id = g.group_id and s.shard = g.shard and s.runner_id is not null
        offset 0
    ) s on true
),
sent as (
    insert into engine.post (channel, kind, group_id, shard, epoch, request_id, body)
    select a.receiver, a.kind, a.group_id, a.shard, a.epoch, a.request_id, a.body
    from addressed a
    where a.receiver is not null
    order by a.nth
),
rung as (
    select count(pg_notify('outlast_' || replace(r.receiver::text, '-', ''), 'v')) as bells
    from (select distinct a.receiver from addressed a where a.receiver is not null) r
    where pg_notification_queue_usage() < 0.5
)
select a.receiver, a.epoch
from addressed a
cross join rung
order by a.nth;
