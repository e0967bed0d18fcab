-- name: reopen
-- Let an execution that has ended, but not well, go on as its next run, with a journal, under these
-- headers and, if it is given, this version.
with reopened as (
    update engine.executions x
    set
        run = x.run + 1,
        status = 1,
        finished_at = null,
        wake_at = clock_timestamp(),
        waiting = null,
        error = null,
        failures = 0,
        failed_position = 0,
        trial = false,
        version = coalesce($18::int, x.version)
    where x.request_id = $15::bigint and x.run = $16::int and coalesce(x.status > 5, false)
    returning x.request_id, x.group_id, x.shard
),
headed as (
    update engine.envelopes e set headers = $17::bytea from reopened o
    where e.request_id = o.request_id and e.headers is distinct from $17::bytea
),
taken as (
    delete from engine.replies d
    where d.ctid = any (array(
        select r.ctid
        from reopened o
        cross join lateral (
            select r.ctid from engine.replies r
            where r.request_id = o.request_id and r.kind <> 0
            offset 0
        ) r
    ))
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
    where exists (select from reopened)
)
select o.group_id, o.shard from reopened o;
