-- name: sweep_waiters
-- Forget the waiters of processes that have no session any more.
with gone as (
    delete from engine.waiters w
    where w.channel not in (
        select 'outlast_' || replace(split_part(a.application_name, ':', 2), '-', '')
        from pg_stat_activity a
        where a.application_name like 'outlast:%'
    )
    returning w.request_id
)
select count(*) as waiters from gone;
