-- name: open
-- Store a message to an execution, and the start of that if there is none: both or neither. One
-- that is there is told if it was started with the same bytes ($9, or $20), has not ended, and may
-- be joined ($12). No answer: a race was lost, and the row that won is not seen by this statement; run it
-- again.
with earlier as (
    select e.request_id, e.payload
    from (
        select case when $15::text is null then $13::bigint else (
            select d.request_id from engine.dedup d where d.key = $15::text
        ) end as request_id
    ) k
    cross join lateral (
        select e.request_id, e.payload from engine.envelopes e
        where e.request_id = k.request_id
        offset 0
    ) e
),
found as (
    select x.request_id, x.status, e.payload
    from engine.dedup d
    cross join lateral (
        select x.request_id, x.status from engine.executions x
        where x.request_id = d.request_id
        offset 0
    ) x
    cross join lateral (
        select e.payload from engine.envelopes e where e.request_id = d.request_id offset 0
    ) e
    where d.key = $7::text
),
opened as (
    insert into engine.dedup (key, request_id)
    select $7::text, $1::bigint
    where not exists (select from found) and not exists (select from earlier)
    on conflict (key) do nothing
    returning request_id
),
aim as (
    select o.request_id from opened o
    union all
    select f.request_id from found f
    where f.status < 5 and f.payload = coalesce($20::bytea, $9::bytea) and $12::bool
        and not exists (select from earlier)
),
fresh as (
    insert into engine.dedup (key, request_id)
    select $15::text, $13::bigint from aim
    where $15::text is not null
    on conflict (key) do nothing
    returning request_id
),
stored as (
    insert into engine.envelopes (
        request_id, group_id, shard, entity_type, entity_id, tag, deliver_at, key, headers, payload
    )
    select
        o.request_id, $2::int, $3::smallint, $4::text, $5::text, 'run', $6::timestamptz, $7::text,
        $8::bytea, $9::bytea
    from opened o
    union all
    select
        $13::bigint, $2::int, $3::smallint, $4::text, $5::text, $14::text, null, $15::text,
        $16::bytea, $17::bytea
    from aim
    where $15::text is null or exists (select from fresh)
    on conflict (request_id) do nothing
    returning request_id
),
delivered as (
    insert into engine.inbox (group_id, shard, kind, request_id, execution, due_at)
    select $2::int, $3::smallint, 0, n.request_id, n.execution, n.due_at
    from (
        select 1 as nth, o.request_id, o.request_id as execution, $6::timestamptz as due_at
        from opened o
        union all
        select 2, s.request_id, a.request_id, null
        from aim a
        join stored s on s.request_id = $13::bigint
    ) n
    order by n.nth
    returning request_id, seq
),
begun as (
    insert into engine.executions (
        request_id, workflow, execution_id, group_id, shard, status, version, attributes
    )
    select o.request_id, $4::text, $5::text, $2::int, $3::smallint, 0, $10::int, $11::text::jsonb
    from opened o
),
awaited as (
    insert into engine.waiters (request_id, channel)
    select w.request_id, $19::text
    from (
        select e.request_id from earlier e
        union all
        select d.request_id from delivered d where d.request_id = $13::bigint
    ) w
    where $18::bool and $19::text is not null
    on conflict do nothing
)
select
    case
        when e.request_id is not null then 1
        when d.request_id is not null then 0
        when f.payload = coalesce($20::bytea, $9::bytea) and $12::bool then 3
        else 4
    end as outcome,
    $13::bigint as asked, coalesce(e.request_id, $13::bigint) as found, d.seq, e.payload,
    o.request_id is not null as opened, coalesce(o.request_id, f.request_id) as execution,
    f.payload as opening
from (select) one
left join earlier e on true
left join found f on true
left join opened o on true
left join delivered d on d.request_id = $13::bigint
where e.request_id is not null or d.request_id is not null
    or f.request_id is not null and not exists (select from aim);
