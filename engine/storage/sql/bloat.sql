-- name: bloat
-- The engine's tables that hold many dead rows, as the statistics have it, the worst first.
select
    s.relname::text as name, s.n_live_tup as live, s.n_dead_tup as dead,
    greatest(s.last_vacuum, s.last_autovacuum) as vacuumed_at,
    current_setting('autovacuum')::boolean
        and not coalesce('autovacuum_enabled=false' = any (c.reloptions), false) as automatic
from pg_class i
join pg_class c on c.relnamespace = i.relnamespace
join pg_stat_all_tables s on s.relid = c.oid
where i.oid = 'engine.inbox'::regclass
    and s.n_dead_tup > $1::bigint and s.n_dead_tup > 2 * s.n_live_tup
order by s.n_dead_tup desc;
