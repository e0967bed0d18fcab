-- name: append
-- Write one journal row and nothing else: what one sequential execution's flush holds. Without
-- ``unnest`` it costs client and server half.
insert into engine.journal (
    execution, run, position, kind, outcome, attempt, ordinal, digest, source, at, started_at,
    due_at, name, payload
)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14);
