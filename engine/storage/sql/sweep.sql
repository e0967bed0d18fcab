-- name: sweep
-- What these shards have to deliver that is not in flight, what executions are due, and when the
-- next thing will be. Requests for those who are held ($8, in the shards that $11 counts) are
-- passed over (-2: what executions begin with), and of entities all but those that are admitted, if
-- anything is said of that; nothing up to a shard's floor is looked at.
-- An interrupt comes with the row of the request that it is for. Of rows and of executions one more
-- than the limit says that there are more. The first row is the header. Of all transactions that
-- write, those from "newest" on had not begun when this looked; "running" are known not to have ended.
-- (A snapshot's end would not do for "newest": it is behind the last that has ended, and others may
-- have begun by then.)
-- (A shard is a range of the index "inbox_ready": where most rows seem to be in one shard, the planner
-- would take equal shards in the order of seq from the primary key, all rows of all shards for each.
-- Of a row comparison PostgreSQL before 18 sees the end of a range by its first column only.)
with owned as (
    select
        o.group_id, o.shard, coalesce(o.floor, 0) as floor, o.nth,
        (o.nth, -2::bigint) in (select * from unnest($11::bigint[], $8::bigint[])) as without_starts
    from unnest($1::int[], $2::smallint[], $9::bigint[]) with ordinality
        as o (group_id, shard, floor, nth)
),
found as (
    select
        o.group_id, o.shard, i.seq, i.kind, i.request_id, i.execution, i.failures, i.trial
    from owned o
    cross join lateral (
        (
            select i.seq, i.kind, i.request_id, i.execution, i.failures, i.trial
            from engine.inbox i
            where i.group_id = o.group_id
                and (i.shard, i.seq) > (o.shard, o.floor)
                and (i.shard, i.seq) <= (o.shard, 9223372036854775807)
                and i.due_at is null
                and i.seq not in (select unnest($3::bigint[]))
                and (
                    i.kind <> 0
                    or (
                        (o.nth, coalesce(i.execution, i.entity))
                        in (select * from unnest($11::bigint[], $8::bigint[]))
                    ) is not true
                    and (o.without_starts and i.execution = i.request_id) is not true
                    and (
                        $10::bigint[] is null
                        or i.entity is null
                        or i.entity in (select unnest($10::bigint[]))
                    )
                )
            order by i.shard, i.seq
            limit $6::bigint
        )
        union all
        (
            select i.seq, i.kind, i.request_id, i.execution, i.failures, i.trial
            from engine.inbox i
            where i.group_id = o.group_id and i.shard = o.shard and i.due_at <= now()
                and i.seq not in (select unnest($3::bigint[]))
                and (
                    i.kind <> 0
                    or (
                        (o.nth, coalesce(i.execution, i.entity))
                        in (select * from unnest($11::bigint[], $8::bigint[]))
                    ) is not true
                    and (o.without_starts and i.execution = i.request_id) is not true
                    and (
                        $10::bigint[] is null
                        or i.entity is null
                        or i.entity in (select unnest($10::bigint[]))
                    )
                )
            order by i.due_at
            limit $6::bigint
        )
    ) i
),
picked as (
    select f.* from found f
    order by f.seq
    limit $5::bigint + 1
),
header as (
    select
        now() as now,
        array(select pg_snapshot_xip(pg_current_snapshot())::text::bigint) as running,
        pg_current_xact_id()::text::bigint as newest,
        (
            select max(i.seq)
            from owned o
            cross join lateral (
                select i.seq from engine.inbox i
                where i.group_id = o.group_id
                    and (i.shard, i.seq) >= (o.shard, 0)
                    and (i.shard, i.seq) <= (o.shard, 9223372036854775807)
                    and i.due_at is null
                    and (cardinality($8::bigint[]) > 0 or $10::bigint[] is not null)
                order by i.shard desc, i.seq desc
                limit 1
            ) i
        ) as last,
        array(
            select x.request_id
            from owned o
            cross join lateral (
                select x.request_id, x.wake_at
                from engine.executions x
                where x.group_id = o.group_id and x.shard = o.shard
                    and x.wake_at <= now() + $7::interval
                    and x.request_id not in (select unnest($4::bigint[]))
                order by x.wake_at
                limit $5::bigint + 1
            ) x
            order by x.wake_at
            limit $5::bigint + 1
        ) as due,
        (
            select min(least(i.due_at, x.wake_at))
            from owned o
            left join lateral (
                select i.due_at from engine.inbox i
                where i.group_id = o.group_id and i.shard = o.shard and i.due_at > now()
                order by i.due_at
                limit 1
            ) i on true
            left join lateral (
                select x.wake_at from engine.executions x
                where x.group_id = o.group_id and x.shard = o.shard and x.wake_at > now() + $7::interval
                order by x.wake_at
                limit 1
            ) x on true
        ) as next_due
),
rows as (
    select
        p.seq, p.kind as inbox_kind, p.execution, p.failures as inbox_failures, p.trial,
        a.seq as target,
        e.request_id, e.group_id, e.shard, e.entity_type, e.entity_id, e.tag, e.uninterruptible,
        e.reply_execution, e.reply_group_id, e.reply_shard, e.deliver_at, e.key, e.headers,
        e.payload,
        p.group_id as inbox_group_id, p.shard as inbox_shard,
        x.workflow, x.execution_id, x.status, x.run, x.version, x.created_at, x.started_at,
        x.finished_at, x.wake_at, x.waiting, x.parent, x.attributes::text as attributes, x.error,
        x.failures,
        r.sequence as reply_sequence, r.kind as reply_kind, r.payload as reply_payload
    from picked p
    left join lateral (
        select e.* from engine.envelopes e where e.request_id = p.request_id offset 0
    ) e on true
    left join lateral (
        select x.* from engine.executions x where x.request_id = p.execution offset 0
    ) x on true
    left join lateral (
        select r.sequence, r.kind, r.payload from engine.replies r
        where p.kind in (1, 2) and r.request_id = p.request_id and r.kind <> 0
        order by r.sequence desc
        limit 1
    ) r on true
    left join lateral (
        select i.seq from engine.inbox i
        where p.kind = 2 and i.request_id = p.request_id and i.kind in (0, 3)
            and i.group_id = p.group_id and i.shard = p.shard
        offset 0
    ) a on true
)
select h.*, d.* from header h full join rows d on false
order by d.seq nulls first;
