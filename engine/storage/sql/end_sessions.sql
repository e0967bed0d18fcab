-- name: end_sessions
-- Signal every session of a runner that has been declared dead, and count them. Whoever may connect
-- may take such a name: a session counts if its login can come to write to shards, and one that may
-- not be signalled from here is not, since asking would spare all others.
select
    count(*) as sessions,
    count(case when s.ours then pg_terminate_backend(s.pid) end) as signalled
from (
    select
        a.pid,
        case when r.rolsuper
            then (select u.rolsuper from pg_roles u where u.rolname = current_user)
            else pg_has_role(r.oid, 'usage') or pg_has_role('pg_signal_backend', 'usage')
        end as ours
    from pg_stat_activity a
    join pg_roles r on r.oid = a.usesysid
    where a.application_name like 'outlast:' || $1::uuid::text || ':%'
        and exists (select from engine.runners d where d.id = $1::uuid and d.died_at is not null)
        and exists (
            select from pg_roles w
            where pg_has_role(a.usesysid, w.oid, 'member')
                and has_table_privilege(w.oid, 'engine.shards', 'update')
        )
    offset 0
) s;
