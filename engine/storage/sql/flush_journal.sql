-- name: flush_journal
-- Write journal rows and nothing else: what most flushes hold.
insert into engine.journal (
    execution, run, position, kind, outcome, attempt, ordinal, digest, source, at, started_at,
    due_at, name, payload
)
select * from unnest(
    $1::bigint[], $2::int[], $3::int[], $4::smallint[], $5::smallint[], $6::int[],
    $7::int[], $8::bigint[], $9::bigint[], $10::timestamptz[], $11::timestamptz[],
    $12::timestamptz[], $13::text[], $14::bytea[]
) as j;
