-- name: lock_holders
-- The sessions that hold locks of shards and are no lane of a runner that lives, with those shards.
-- Whoever may connect may take such a lock, and such a name: a lane's login can come to write to
-- shards.
select
    l.pid, a.usename::text as login, a.application_name as application,
    host(a.client_addr) as address, a.backend_start as since,
    array_agg(s.group_id order by s.group_id, s.shard) as group_ids,
    array_agg(s.shard order by s.group_id, s.shard) as numbers
from pg_locks l
join engine.shards s
    on l.classid = s.group_id::oid and l.objid = s.shard::int::oid and l.objsubid = 2
left join pg_stat_activity a on a.pid = l.pid
where l.locktype = 'advisory' and l.granted
    and l.database = (select d.oid from pg_database d where d.datname = current_database())
    and not exists (
        select from engine.runners r
        where r.died_at is null and a.application_name like 'outlast:' || r.id::text || ':lane-%'
            and exists (
                select from pg_roles w
                where pg_has_role(a.usesysid, w.oid, 'member')
                    and has_table_privilege(w.oid, 'engine.shards', 'update')
            )
    )
group by l.pid, a.usename, a.application_name, a.client_addr, a.backend_start
order by l.pid;
