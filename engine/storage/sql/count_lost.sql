-- name: count_lost
-- Count what the lost owner of shards may have had in hand as failed: the rows and executions on
-- trial and, as far as they are not suspect yet, of the oldest due rows the requests and the
-- executions that they are for, and the executions that were to wake. Bounded, whatever the backlog
-- is.
with lost as (
    select l.group_id, l.shard from unnest($1::int[], $2::smallint[]) as l (group_id, shard)
),
tried as (
    select i.place
    from lost l
    cross join lateral (
        select i.ctid as place from engine.inbox i
        where i.group_id = l.group_id and i.shard = l.shard and i.trial
        offset 0
    ) i
),
accused as (
    select x.request_id
    from lost l
    cross join lateral (
        select x.request_id from engine.executions x
        where x.group_id = l.group_id and x.shard = l.shard and x.trial
            and x.status < 5 and x.status <> 3
        offset 0
    ) x
),
due as (
    select l.group_id, l.shard, i.place, i.seq, i.kind, i.execution, i.failures
    from lost l
    cross join lateral (
        (
            select i.ctid as place, i.seq, i.kind, i.execution, i.failures
            from engine.inbox i
            where i.group_id = l.group_id
                and (i.shard, i.seq) >= (l.shard, 0)
                and (i.shard, i.seq) <= (l.shard, 9223372036854775807)
                and i.due_at is null
            order by i.shard, i.seq  -- as in the sweep
            limit 1000
        )
        union all
        (
            select i.ctid, i.seq, i.kind, i.execution, i.failures
            from engine.inbox i
            where i.group_id = l.group_id and i.shard = l.shard and i.due_at <= now()
            order by i.due_at
            limit 1000
        )
    ) i
),
blamed as (
    select
        d.place, row_number() over (partition by d.group_id, d.shard order by d.seq) as nth
    from due d
    where d.kind in (0, 3) and d.execution is null and d.failures < $3::int
),
counted as (
    update engine.inbox i
    set failures = i.failures + 1, trial = false
    where i.ctid = any (array(
        select t.place from tried t
        union all
        select b.place from blamed b where b.nth <= $4::int
    ))
),
busy as (
    select a.request_id as execution from accused a
    union
    select d.execution from due d where d.execution is not null
    union
    select x.request_id
    from lost l
    cross join lateral (
        select x.request_id from engine.executions x
        where x.group_id = l.group_id and x.shard = l.shard and x.wake_at <= now()
        order by x.wake_at
        limit 1000
    ) x
)
update engine.executions x
set (trial, failures, failed_position) = (
    select
        false,
        case
            when l.position > x.failed_position then 1
            when x.trial or x.failures < $3::int then x.failures + 1
            else x.failures
        end,
        l.position
    from (
        select coalesce(max(j.position), 0) as position from engine.journal j
        where j.execution = x.request_id and j.run = x.run
    ) l
)
where x.ctid = any (array(
    select e.ctid
    from busy b
    cross join lateral (
        select e.ctid from engine.executions e
        where e.request_id = b.execution and coalesce(e.status < 5 and e.status <> 3, false)
        offset 0
    ) e
));
