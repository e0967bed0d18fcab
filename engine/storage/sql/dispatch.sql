-- name: dispatch
-- Write what the owner of a queue decided: items that arrived, items that are admitted, and what is
-- over. Of each line the oldest waiting items are admitted, to the shards of $15 in turn; rows that
-- arrive in this statement are not among them. Answers with those that it has chosen, and with the
-- groups and shards in which executions are told of what is over.
with arrived as (
    insert into engine.queue_items (
        queue, request_id, seq, priority, key, shard, due_at, debounce, since
    )
    select $1::text, a.*
    from unnest(
        $4::bigint[], $5::bigint[], $6::int[], $7::text[], $8::smallint[], $9::timestamptz[],
        $10::text[], $11::timestamptz[]
    ) as a (request_id, seq, priority, key, shard, due_at, debounce, since)
    returning request_id, shard
),
chosen as (
    select q.place, q.request_id, row_number() over (order by l.nth, q.seq) as nth
    from unnest($12::int[], $13::text[], $14::int[]) with ordinality
        as l (priority, key, count, nth)
    cross join lateral (
        select q.ctid as place, q.request_id, q.seq
        from engine.queue_items q
        where q.queue = $1::text and q.priority = l.priority and q.key = l.key
            and q.shard is null and q.due_at is null
            and q.request_id not in (select unnest($17::bigint[]))
        order by q.seq
        limit l.count
    ) q
),
admitted as (
    update engine.queue_items q
    set shard = ($15::smallint[])[
        array_position(array(select c.request_id from chosen c order by c.nth), q.request_id)
    ]
    where q.ctid = any (array(select c.place from chosen c))
    returning q.request_id, q.seq, q.priority, q.key, q.shard
),
ripe as (
    update engine.queue_items q
    set due_at = null
    where q.ctid = any (array(
        select i.ctid
        from unnest($16::bigint[]) as r (request_id)
        cross join lateral (
            select i.ctid from engine.queue_items i where i.request_id = r.request_id offset 0
        ) i
    ))
),
delivered as (
    insert into engine.inbox (group_id, shard, kind, request_id)
    select $2::int, d.shard, d.kind, d.request_id
    from (
        select a.shard, 3 as kind, a.request_id from admitted a
        union all
        select a.shard, 3, a.request_id from arrived a where a.shard is not null
        union all
        select u.shard, 2, u.request_id
        from unnest($19::bigint[], $20::smallint[]) as u (request_id, shard)
    ) d
),
freed as (
    delete from engine.queue_items d
    where d.ctid = any (array(
        select i.ctid
        from unnest($17::bigint[]) as f (request_id)
        cross join lateral (
            select i.ctid from engine.queue_items i where i.request_id = f.request_id offset 0
        ) i
    ))
),
settled as (
    delete from engine.inbox d
    where d.ctid = any (array(
        select i.ctid
        from unnest($18::bigint[]) as s (seq)
        cross join lateral (
            select i.ctid from engine.inbox i
            where i.group_id = $2::int and i.shard = $3::smallint and i.seq = s.seq
            offset 0
        ) i
    ))
),
ended as (
    insert into engine.replies (request_id, sequence, kind, payload)
    select e.request_id, 0, e.kind, e.payload
    from unnest($24::bigint[], $25::smallint[], $26::bytea[]) as e (request_id, kind, payload)
    on conflict do nothing
    returning request_id
),
returned as (
    insert into engine.inbox (group_id, shard, kind, request_id, execution)
    select e.reply_group_id, e.reply_shard, 1, e.request_id, e.reply_execution
    from ended d
    cross join lateral (
        select e.* from engine.envelopes e where e.request_id = d.request_id offset 0
    ) e
    where e.reply_execution is not null
    returning group_id, shard
),
noted as (
    insert into engine.queues as k (name, group_id, shard, settings, paused, next_at)
    select $1::text, $2::int, $3::smallint, $21::jsonb, $22::bool, $23::timestamptz
    where $21::jsonb is not null
    on conflict (name) do update
    set
        group_id = excluded.group_id,
        shard = excluded.shard,
        settings = excluded.settings,
        paused = excluded.paused,
        next_at = excluded.next_at
)
select null::int as told, a.request_id, a.seq, a.priority, a.key, a.shard from admitted a
union all
select r.group_id, null, null, null, null, r.shard from returned r;
