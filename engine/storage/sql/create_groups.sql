-- name: create_groups
-- Create shard groups with all their shards, as far as they do not exist.
with made as (
    insert into engine.shard_groups (name, group_id, shards)
    select u.name, u.group_id, $3::int from unnest($1::text[], $2::int[]) as u (name, group_id)
    order by u.name
    on conflict do nothing
    returning group_id, shards
)
insert into engine.shards (group_id, shard)
select m.group_id, n from made m cross join lateral generate_series(1, m.shards) as n;
