-- name: ring_waiters
-- As ring, for the processes that wait for one request alone.
with awaited as (
    delete from engine.waiters w where w.request_id = $1::bigint returning w.request_id, w.channel
)
select pg_notify(a.channel, 'r:' || a.request_id) from awaited a;
