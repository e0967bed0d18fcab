"""What ``tests.chaos.checker`` is given of a database: read once a run is over."""

import json
from typing import Any

import asyncpg

from engine.core.reply import ReplyKind
from tests.chaos.checker import Request, Tables, Timer
from tests.chaos.commits import Row

KEYS = """
    select e.request_id,
        case when x.request_id is not null then x.workflow || '/' || x.execution_id
             when e.entity_type = 'Account' and e.tag = 'count' then 'Stream/' || e.entity_id
             when e.entity_type = 'queue:Lots' then 'Lots/' || e.entity_id
             else 'message/' || e.entity_type || '/' || e.entity_id || ' ' || e.tag end as key,
        (select count(*) from engine.replies r
         where r.request_id = e.request_id and r.kind > 0) as exits,
        r.kind, r.payload
    from engine.envelopes e
    left join engine.executions x using (request_id)
    left join engine.replies r on r.request_id = e.request_id and r.kind > 0
    where x.request_id is not null or e.entity_type in ('Account', 'queue:Lots')
"""
ROWS = """
    select a.what, a.request, a.shard, split_part(a.writer, ':', 2) as writer,
        split_part(a.writer, ':', 3) as role, a.owner::text, a.epoch,
        split_part(a.name, '#', 1) as head, split_part(a.name, '#', 2) as number,
        j.kind, e.entity_type = 'queue:Lots' as item
    from audit a left join engine.envelopes e on e.request_id = a.request
    left join engine.journal j
        on a.what = 'journal' and j.execution = a.request
        and j.position = nullif(split_part(a.name, '#', 2), '')::int
    order by min(a.nth) over (partition by a.together), a.request,
        nullif(split_part(a.name, '#', 2), '')::int, a.nth
"""
"""In the order of commits; what was written together, in its own."""
TIMERS = """
    select 'Life/' || execution as key, due, at from woken
    union all
    select 'Life/' || x.execution_id, j.due_at, a.at
    from audit a
    join engine.journal j
        on j.execution = a.request and j.position = split_part(a.name, '#', 2)::int and j.kind = 3
    join engine.executions x on x.request_id = j.execution
    where a.what = 'journal'
"""
"""When a step ran that came after a sleep, and when a timer's journal row was committed."""
BOOKS = "select entity_id, payload from engine.entity_states where entity_type = 'Account'"
EFFECTS = "select 'Life/' || execution, step from effects"
RECORDED = """
    select 'Life/' || x.execution_id, count(*)
    from engine.journal j join engine.executions x on x.request_id = j.execution
    where j.kind = 1 and j.outcome = 0 and j.name = 'record' group by x.execution_id
"""
TOUCHED = """
    select distinct
        case when step = 'process' then 'Lots/' else 'Life/' end || execution, step, key
    from touched
"""
LEFT = """
    select 'inbox row ' || i.kind || ' of ' || coalesce(e.entity_type || '/' || e.entity_id, '?')
        || ', failures ' || i.failures || ', owner ' || coalesce(s.runner_id::text, 'none')
    from engine.inbox i join engine.shards s using (group_id, shard)
    left join engine.envelopes e using (request_id)
    union all
    select workflow || '/' || execution_id || ' has status ' || status || ' and waits for '
        || coalesce(waiting, 'nothing')
    from engine.executions where status < 5
    union all
    select 'item of ' || queue || ' that ' || case
            when shard is not null then 'is admitted to ' || shard
            when due_at is not null then 'is due at ' || due_at
            else 'waits' end
    from engine.queue_items
"""


async def read(database: "asyncpg.Pool[Any]") -> Tables:
    return Tables(
        requests=[_request(row) for row in await database.fetch(KEYS)],
        rows=[_row(row) for row in await database.fetch(ROWS)],
        timers=[Timer(**row) for row in await database.fetch(TIMERS)],
        books={
            f"Account/{row['entity_id']}": json.loads(row["payload"])
            for row in await database.fetch(BOOKS)
        },
        effects=[tuple(row) for row in await database.fetch(EFFECTS)],
        recorded=dict(tuple(row) for row in await database.fetch(RECORDED)),
        touched=[tuple(row) for row in await database.fetch(TOUCHED)],
        left=await left(database),
    )


async def left(database: "asyncpg.Pool[Any]") -> list[str]:
    """What is not over yet, in words."""
    return [row[0] for row in await database.fetch(LEFT)]


def _request(row: asyncpg.Record) -> Request:
    result: Any = None
    if row["kind"] is not None:
        kind, said = ReplyKind(row["kind"]), json.loads(row["payload"])
        if kind is ReplyKind.SUCCESS:
            result = said
        else:
            result = kind.name.lower()
            result = result if kind is ReplyKind.INTERRUPTED else f"{result}: {said}"
    return Request(id=row["request_id"], key=row["key"], exits=row["exits"], result=result)


def _row(row: asyncpg.Record) -> Row:
    reply = row["what"] == "reply"
    return Row(
        name=row["head"],
        what="item" if reply and row["item"] else row["what"],
        request=row["request"] or 0,
        number=int(row["number"] or 0),
        kind=int(row["head"]) if reply else row["kind"] or 0,
        shard=row["shard"] or 0,
        writer=row["writer"],
        role=row["role"],
        owner=row["owner"] or "",
        epoch=row["epoch"] or 0,
    )
