-- name: settle_session
-- Set what a session of the engine needs, after connecting: poolers refuse it at start-up. With the
-- number of the server process that was announced at log-in, only if it is that one which answers:
-- what is set on a server that a pooler lends out would reach others.
select set_config(s.name, s.value, $3::bool)
from unnest($1::text[], $2::text[]) as s (name, value)
where $4::int is null or pg_backend_pid() = $4::int;
