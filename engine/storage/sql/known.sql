-- name: known
-- Those of these deduplication keys that a request was stored with.
select d.key
from unnest($1::text[]) as k (key)
cross join lateral (
    select d.key from engine.dedup d where d.key = k.key offset 0
) d;
