-- name: mark_tried
-- Note that these inbox rows are delivered on trial now.
update engine.inbox d
set trial = true
where d.ctid = any (array(
    select i.ctid
    from unnest($1::int[], $2::smallint[], $3::bigint[]) as s (group_id, shard, seq)
    cross join lateral (
        select i.ctid from engine.inbox i
        where i.group_id = s.group_id and i.shard = s.shard and i.seq = s.seq
        offset 0
    ) i
));
