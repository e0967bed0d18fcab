-- name: strangers
-- Logins of live runners' sessions of which the first may not end those of the second.
with logins as (
    select distinct u.oid, u.rolname, u.rolsuper
    from engine.runners r
    join pg_stat_activity a on a.application_name like 'outlast:' || r.id::text || ':%'
    join pg_roles u on u.oid = a.usesysid
    where r.died_at is null
)
select one.rolname::text as judge, other.rolname::text as judged
from logins one
join logins other on other.oid <> one.oid
where not one.rolsuper and (
    other.rolsuper
    or not (
        pg_has_role(one.oid, other.oid, 'usage')
        or pg_has_role(one.oid, 'pg_signal_backend', 'usage')
    )
)
order by 1, 2;
