-- name: start
-- As save, for the start of one execution alone: without ``unnest`` and what only messages need it
-- costs the server half. The answer is that of save as well, and so is none at all.
with known as (
    select e.request_id, e.payload
    from engine.dedup d
    cross join lateral (
        select e.request_id, e.payload from engine.envelopes e where e.request_id = d.request_id
        offset 0
    ) e
    where d.key = $7::text
),
fresh as (
    insert into engine.dedup (key, request_id)
    select $7::text, $1::bigint
    where not exists (select from known)
    on conflict (key) do nothing
    returning request_id
),
stored as (
    insert into engine.envelopes (
        request_id, group_id, shard, entity_type, entity_id, tag, deliver_at, key, headers, payload
    )
    select
        f.request_id, $2::int, $3::smallint, $4::text, $5::text, 'run', $6::timestamptz, $7::text,
        $8::bytea, $9::bytea
    from fresh f
    on conflict (request_id) do nothing
    returning request_id
),
delivered as (
    insert into engine.inbox (group_id, shard, kind, request_id, execution, due_at)
    select $2::int, $3::smallint, 0, s.request_id, s.request_id, $6::timestamptz
    from stored s
    returning seq
),
begun as (
    insert into engine.executions (
        request_id, workflow, execution_id, group_id, shard, status, version, attributes
    )
    select
        s.request_id, $4::text, $5::text, $2::int, $3::smallint, 0, $10::int, $11::jsonb
    from stored s
),
awaited as (
    insert into engine.waiters (request_id, channel)
    select f.request_id, $12::text
    from (select k.request_id from known k union all select s.request_id from stored s) f
    where $12::text is not null
    on conflict do nothing
)
select 1 as outcome, $1::bigint as asked, k.request_id as found, null::bigint as seq, k.payload
from known k
union all
select 0, $1::bigint, $1::bigint, d.seq, null from delivered d;
