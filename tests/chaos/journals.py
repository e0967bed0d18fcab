"""What every chaos test asks of the database at the end, in SQL."""

from typing import Any

import asyncpg

from tests.chaos.cluster import Cluster

TWICE_IN_THE_JOURNAL = """
    select x.workflow, x.execution_id, j.name, j.ordinal, count(*) as times,
           array_agg(j.position order by j.position) as positions
    from engine.journal j join engine.executions x on x.request_id = j.execution
    where j.kind in (1, 5)
    group by x.workflow, x.execution_id, j.run, j.kind, j.name, j.ordinal
    having count(*) > 1
"""
STEPS = """
    select j.name, j.outcome, count(*) as times, count(distinct j.execution) as executions
    from engine.journal j join engine.executions x on x.request_id = j.execution
    where x.workflow = $1 and j.kind = 1
    group by j.name, j.outcome
"""
UNEQUAL_EFFECTS = """
    select x.execution_id, s.step, count(e.*) as times
    from engine.executions x
    cross join unnest($2::text[]) as s (step)
    left join effects e on e.execution = x.execution_id and e.step = s.step
    where x.workflow = $1
    group by x.execution_id, s.step
    having count(e.*) <> 1
"""
UNHANDLED = """
    select x.execution_id
    from engine.executions x
    where x.workflow = $1 and not exists (select from handled h where h.execution = x.execution_id)
"""
KEYS = """
    select execution, step, array_agg(distinct key) as keys
    from touched group by execution, step having count(distinct key) > 1
"""
LEFT_OVER = """
    select i.shard, i.seq, i.kind, i.request_id, x.workflow, x.execution_id, x.status
    from engine.inbox i left join engine.executions x on x.request_id = i.execution
"""
UNFINISHED = """
    select x.execution_id, x.status, x.waiting, x.wake_at, x.shard, s.epoch, s.runner_id,
           (select count(*) from engine.journal j where j.execution = x.request_id) as rows,
           (select count(*) from engine.inbox i where i.execution = x.request_id) as inbox
    from engine.executions x join engine.shards s using (group_id, shard)
    where x.workflow = $1 and x.status < 5
"""
ATTEMPTS = """
    select x.execution_id, j.name, j.attempt, convert_from(j.payload, 'utf8') as error
    from engine.journal j join engine.executions x on x.request_id = j.execution
    where j.kind = 2
"""
"""No step of the application ever fails by itself: what the outside does to it is no attempt."""
ENTITY_REQUESTS = """
    select count(*) as requests, count(distinct e.payload) as calls
    from engine.envelopes e where e.entity_type = 'Ledger'
"""


async def rows(cluster: Cluster, query: str, *args: object) -> list[asyncpg.Record]:
    return list(await cluster.database.fetch(query, *args))


async def assert_once(
    cluster: Cluster, workflow: str, *, steps: dict[str, int], effects: list[str]
) -> None:
    """Each execution has ended; each journal has each step once; each effect is there once.

    ``steps``: the names in every journal of the workflow, each with how many of its executions
    have that step with a result.
    """
    assert await rows(cluster, UNFINISHED, workflow) == []
    assert await rows(cluster, TWICE_IN_THE_JOURNAL) == []
    counted = {
        row["name"]: row["times"]
        for row in await rows(cluster, STEPS, workflow)
        if row["outcome"] == 0
    }
    assert counted == steps
    assert await rows(cluster, UNEQUAL_EFFECTS, workflow, effects) == []
    if "Ledger.book" in steps:
        assert await rows(cluster, UNHANDLED, workflow) == []
        (requests,) = await rows(cluster, ENTITY_REQUESTS)
        assert requests["requests"] == requests["calls"]
    assert await rows(cluster, KEYS) == []
    assert await rows(cluster, ATTEMPTS) == []


async def statistics(cluster: Cluster) -> dict[str, Any]:
    """Numbers worth seeing in a test's output."""
    (row,) = await rows(
        cluster,
        """
        select (select count(*) from effects) as effects, (select count(*) from handled) as handled,
               (select count(*) from touched) as touched,
               (select count(*) from engine.journal) as journal,
               (select count(*) from engine.journal where kind = 2) as retries,
               (select count(*) from engine.journal where outcome = 2) as cancelled,
               (select max(epoch) from engine.shards) as epoch,
               (select count(*) from engine.runners) as incarnations
        """,
    )
    return dict(row)
