-- name: fork
-- Store an execution that has a journal already, unless its key is taken. Its owner finds it by its
-- wake_at.
with fresh as (
    insert into engine.dedup (key, request_id)
    values ($15::text, $16::bigint)
    on conflict (key) do nothing
    returning request_id
),
stored as (
    insert into engine.envelopes (
        request_id, group_id, shard, entity_type, entity_id, tag, key, headers, payload
    )
    select
        f.request_id, $17::int, $18::smallint, $19::text, $20::text, $21::text, $15::text,
        $22::bytea, $23::bytea
    from fresh f
),
begun as (
    insert into engine.executions (
        request_id, workflow, execution_id, group_id, shard, status, version, started_at, wake_at,
        attributes
    )
    select
        f.request_id, $19::text, $20::text, $17::int, $18::smallint, 1, $24::int,
        $25::timestamptz, clock_timestamp(), $26::text::jsonb
    from fresh f
),
written as (
    insert into engine.journal (
        execution, run, position, kind, outcome, attempt, ordinal, digest, source, at, started_at,
        due_at, name, payload
    )
    select u.* from unnest(
        $1::bigint[], $2::int[], $3::int[], $4::smallint[], $5::smallint[], $6::int[],
        $7::int[], $8::bigint[], $9::bigint[], $10::timestamptz[], $11::timestamptz[],
        $12::timestamptz[], $13::text[], $14::bytea[]
    ) as u
    where exists (select from fresh)
)
select f.request_id from fresh f;
