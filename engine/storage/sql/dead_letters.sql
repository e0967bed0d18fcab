-- name: dead_letters
-- Messages from one id to another that ended in a defect, of one type, of one entity: the youngest.
-- Those of executions are none: they are found and retried by other means.
select
    r.request_id, e.group_id, e.shard, e.entity_type, e.entity_id, e.tag, e.payload,
    r.payload as error
from engine.replies r
cross join lateral (
    select e.* from engine.envelopes e where e.request_id = r.request_id offset 0
) e
where r.kind = 5 and r.request_id between $1::bigint and $2::bigint
    and ($3::text is null or e.entity_type = $3::text)
    and ($4::text is null or e.entity_id = $4::text)
    and not exists (
        select from engine.executions x where x.request_id = r.request_id offset 0
    )
order by r.request_id desc
limit $5::bigint;
