-- name: request
-- One stored request.
select
    e.request_id, e.group_id, e.shard, e.entity_type, e.entity_id, e.tag, e.uninterruptible,
    e.reply_execution, e.reply_group_id, e.reply_shard, e.deliver_at, e.key, e.headers, e.payload
from engine.envelopes e where e.request_id = $1::bigint;
