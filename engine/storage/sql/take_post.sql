-- name: take_post
-- Read the volatile messages that have come for one process, in the order they were sent, and throw
-- away those that it has read before.
with read_before as (
    delete from engine.post p where p.channel = $1::uuid and p.seq = any ($2::bigint[])
)
select p.seq, p.kind, p.group_id, p.shard, p.epoch, p.request_id, p.body
from engine.post p
where p.channel = $1::uuid and p.seq <> all ($2::bigint[])
order by p.seq
limit 1000;
