-- name: server
-- What a server says of itself; times and ages that this login may not see are null.
select
    current_setting('server_version') as version,
    clock_timestamp() as now,
    pg_postmaster_start_time() as started_at,
    pg_is_in_recovery() as standby,
    current_setting('default_transaction_read_only')::boolean as read_only,
    current_setting('fsync')::boolean as fsync,
    current_setting('full_page_writes')::boolean as full_page_writes,
    coalesce(
        (select r.reset_val from pg_settings r where r.name = 'synchronous_commit'), 'on'
    ) as synchronous_commit,
    current_setting('max_connections')::integer
        - current_setting('superuser_reserved_connections')::integer as connections,
    (
        select count(*)::integer from pg_stat_activity a where a.backend_type = 'client backend'
    ) as connected,
    current_setting('max_locks_per_transaction')::bigint * (
        current_setting('max_connections')::bigint
        + current_setting('max_prepared_transactions')::bigint
    ) as lock_slots,
    (select min(a.xact_start) from pg_stat_activity a where a.backend_xmin is not null
        and a.datname = current_database() and a.pid <> pg_backend_pid()) as oldest_transaction,
    (select min(p.prepared) from pg_prepared_xacts p) as oldest_prepared,
    (
        select r.slot_name::text from pg_replication_slots r
        where not r.active and (r.xmin is not null or r.catalog_xmin is not null) limit 1
    ) as idle_slot;
