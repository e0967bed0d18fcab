"""Heartbeats of steps as ``storage.protocol`` has them, asked of both storages."""

from dataclasses import replace

import pytest

from engine.core.ids import Snowflake
from engine.storage.heartbeats import StepHeartbeat
from engine.storage.protocol import BadBatch, Commit, LaneSession
from tests.storage.world import NOW, ONE, Process, World, next_id, step, take_over

CRAWL = Snowflake(7)


def heartbeat(
    *, execution: Snowflake = CRAWL, ordinal: int = 0, details: bytes | None = b'{"page": 1}'
) -> StepHeartbeat:
    return StepHeartbeat(
        execution=execution,
        run=1,
        name="crawl",
        ordinal=ordinal,
        attempt=1,
        at=NOW,
        details=details,
    )


async def write(lane: LaneSession, *heartbeats: StepHeartbeat) -> None:
    await lane.flush([Commit(shard=ONE, heartbeats=list(heartbeats))])


async def stored(process: Process, *executions: Snowflake) -> list[StepHeartbeat]:
    return list(await process.storage.heartbeats(executions or (CRAWL,)))


async def test_a_heartbeat_is_stored_as_it_was(process: Process, lane: LaneSession) -> None:
    first = heartbeat()
    empty = replace(heartbeat(ordinal=1), details=b"", attempt=3)
    named = replace(heartbeat(), run=2, name="crawl[" + "ü" * 4000 + "]")

    await write(lane, named, empty, first)

    assert await stored(process) == [first, empty, named]


async def test_of_a_step_the_last_heartbeat_is_kept(process: Process, lane: LaneSession) -> None:
    last = replace(heartbeat(), attempt=2, details=b"9")

    await write(lane, heartbeat())
    await write(lane, replace(last, details=b"8"), last)

    assert await stored(process) == [last]


async def test_a_step_that_has_ended_leaves_none(process: Process, lane: LaneSession) -> None:
    other = heartbeat(ordinal=1)
    await write(lane, heartbeat(), other)

    await write(lane, replace(heartbeat(), details=b"2"), heartbeat(details=None))
    await write(lane, heartbeat(ordinal=5, details=None))

    assert await stored(process) == [other]


async def test_heartbeats_are_those_of_the_executions_that_were_asked_for(
    process: Process, lane: LaneSession
) -> None:
    one, two, three = (heartbeat(execution=next_id()) for _ in range(3))
    await write(lane, one, two, three)

    assert await stored(process, three.execution, one.execution, one.execution) == [one, three]
    assert list(await process.storage.heartbeats([])) == []


async def test_the_next_owner_reads_what_the_last_one_wrote(
    world: World, process: Process, lane: LaneSession
) -> None:
    await write(lane, heartbeat())

    successor = await take_over(world, lane)
    await write(successor, replace(heartbeat(), attempt=2))

    assert await stored(process) == [replace(heartbeat(), attempt=2)]


async def test_a_refused_batch_writes_no_heartbeat(process: Process, lane: LaneSession) -> None:
    taken = step(next_id(), 1)
    await lane.flush([Commit(shard=ONE, journal=[taken])])

    with pytest.raises(BadBatch):
        await lane.flush([Commit(shard=ONE, journal=[taken], heartbeats=[heartbeat()])])

    assert await stored(process) == []
