-- name: workflows
-- Each workflow that has executions, with the shard group of one: skips through the dedup keys.
with recursive steps as (
    (
        select d.key, d.request_id from engine.dedup d
        where d.key >= 'run/' and d.key < 'run0' order by d.key limit 1
    )
    union all
    select d.key, d.request_id
    from steps s
    cross join lateral (
        -- '0' follows '/', so this is the first key past all of that workflow's
        select d.key, d.request_id from engine.dedup d
        where d.key >= 'run/' || split_part(s.key, '/', 2) || '0' and d.key < 'run0'
        order by d.key limit 1
    ) d
)
select split_part(s.key, '/', 2) as workflow, g.name as group
from steps s
join engine.executions x on x.request_id = s.request_id
join engine.shard_groups g on g.group_id = x.group_id
order by 1;
