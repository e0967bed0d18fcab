-- name: settle_session
-- Set what a session of the engine needs, after connecting: poolers refuse it at start-up.
select set_config(s.name, s.value, $3::bool) from unnest($1::text[], $2::text[]) as s (name, value);
