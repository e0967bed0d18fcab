-- name: schema_version
-- The revision of the schema, as alembic keeps it.
select v.version_num from engine.schema_version v;
