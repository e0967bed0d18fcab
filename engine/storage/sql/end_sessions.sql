-- name: end_sessions
-- Signal every session of a runner that has been declared dead, and count them.
select count(pg_terminate_backend(a.pid)) as sessions
from pg_stat_activity a
where a.application_name like 'outlast:' || $1::uuid::text || ':%'
    and exists (select from engine.runners r where r.id = $1::uuid and r.died_at is not null);
