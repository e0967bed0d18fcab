-- name: stuck
-- Requests that are due, were made before $1 (an id tells when) and have not begun, by whom they are
-- for. Of a large backlog 100,000 rows of either sort are looked at.
select e.entity_type as name, count(*) as count, min(i.request_id) as oldest
from (
    (
        select i.request_id, i.execution from engine.inbox i
        where i.kind = 0 and i.request_id < $1::bigint and i.due_at is null
        limit 100000
    )
    union all
    (
        select i.request_id, i.execution from engine.inbox i
        where i.kind = 0 and i.request_id < $1::bigint
            and i.due_at < clock_timestamp() - $2::interval
        limit 100000
    )
) i
join engine.envelopes e on e.request_id = i.request_id
left join engine.executions x on x.request_id = i.execution
where x.request_id is null or (x.status = 0 and x.request_id = i.request_id)
group by e.entity_type
order by count(*) desc, e.entity_type;
