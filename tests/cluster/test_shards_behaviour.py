"""Shards: shared out evenly, few moved when runners come and go, given up last on a stop."""

import asyncio
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine import Entity
from tests.chaos.cluster import Process
from tests.cluster.cast import Single
from tests.cluster.characters import Clinging, Lingering
from tests.cluster.live import Live
from tests.eventually import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]
EPOCHS = """
    select s.shard, r.pid, s.epoch from engine.shards s
    join engine.shard_groups g using (group_id) join engine.runners r on r.id = s.runner_id
    where g.name = 'default'
"""
STRANGERS = "select pid from engine.runners where pid <> all($1) and died_at is null"
DISPLACED = 8
"""Of 30 shards, so many at most move beside the share of who comes or goes, in 3,000 tries."""

Owned = dict[int, tuple[int, int]]


async def owned(live: Live) -> Owned:
    """The pid of each shard's owner, and the epoch it has been its owner since, once all is as it
    stays: a runner that has gone is given shards until it is buried."""

    async def alone() -> bool:
        pids = [runner.pid for runner in live.runners]
        return not await live.database.fetch(STRANGERS, pids)

    await eventually(alone, timeout=40)
    await live.settled(live.runners)
    rows = await live.database.fetch(EPOCHS)
    return {row["shard"]: (row["pid"], row["epoch"]) for row in rows}


def moved(before: Owned, after: Owned) -> set[int]:
    """The shards that changed hands. All others were not touched: they have the same epoch."""
    changed = {shard for shard in before if before[shard] != after[shard]}
    for shard in changed:
        assert before[shard][0] != after[shard][0]
        assert after[shard][1] > before[shard][1]
    return changed


def of(runner: Process, shards: Owned) -> set[int]:
    return {shard for shard, (pid, _) in shards.items() if pid == runner.pid}


async def test_a_runner_that_joins_takes_its_share_and_few_others_move(live: Live) -> None:
    async with asyncio.timeout(150):
        before = await owned(live)
        newcomer = await live.processes.start_runner()
        after = await owned(live)
    share = of(newcomer, after)
    counts = Counter(pid for pid, _ in after.values())
    shares = [counts[runner.pid] for runner in live.runners]
    assert max(shares) - min(shares) <= 1
    assert share <= moved(before, after)
    assert len(moved(before, after)) <= len(share) + (live.size > 1) * DISPLACED


async def test_a_runner_that_leaves_leaves_its_share_and_few_others_move(live: Live) -> None:
    async with asyncio.timeout(150):
        leaving = await live.processes.start_runner()
        before = await owned(live)
        leaving.send(signal.SIGTERM)
        assert await leaving.process.wait() == 0
        after = await owned(live)
    share = of(leaving, before)
    counts = Counter(pid for pid, _ in after.values())
    shares = [counts[runner.pid] for runner in live.runners]
    assert max(shares) - min(shares) <= 1
    assert share <= moved(before, after)
    assert len(moved(before, after)) <= len(share) + (live.size > 1) * DISPLACED


async def test_a_runner_that_dies_leaves_its_share_and_few_others_move(live: Live) -> None:
    async with asyncio.timeout(150):
        dying = await live.processes.start_runner()
        before = await owned(live)
        await dying.kill()
        after = await owned(live)
    assert of(dying, before) <= moved(before, after)
    assert len(moved(before, after)) <= len(of(dying, before)) + (live.size > 1) * DISPLACED


@asynccontextmanager
async def stopping(
    live: Live, entity: type[Entity], handler: str, ids: list[str], gate: str, *, grace: float
) -> AsyncIterator[tuple[Process, list[asyncio.Task[int]]]]:
    """A runner that was told to stop while entities of its shards waited at a gate, and their
    callers; afterwards all have their answers."""
    leaving = await live.greedy_runner(grace_period=grace)
    async with asyncio.TaskGroup() as group:
        calls = [
            group.create_task(getattr(live.client.entity(entity, id), handler)(gate)) for id in ids
        ]
        for id in ids:
            await live.noted(id, 1)
        leaving.send(signal.SIGTERM)
        yield leaving, calls


async def test_a_runner_that_stops_refuses_new_work_ends_its_own_and_gives_the_shards_up_last(
    live: Live,
) -> None:
    ids, gate = live.names(2), live.name("gate")
    echo = {"type": "Single", "entity_id": live.name(), "tag": "echo", "payload": '{"value":""}'}
    async with (
        asyncio.timeout(150),
        stopping(live, Single, "wait_at", ids, gate, grace=300) as (leaving, calls),
    ):

        async def refused() -> bool:
            try:
                await leaving.ask("send", within=2, **echo)
            except AssertionError as error:
                return "ShuttingDown" in str(error)
            return False

        await eventually(refused, timeout=30)
        await live.client.tell(live.client.entity(Single, ids[0]).note, "new")
        for id in ids:
            shard = live.address(Single, id).shard
            assert (await live.owners())[shard.number] == leaving.pid
            assert await leaving.ask("has_shard", group=shard.group, number=shard.number)
        await live.open(gate)
        assert await leaving.process.wait() == 0
        await live.settled(live.runners)
        *own, (next_owner, new) = await wait_for_notes(live, ids[0], 3)
    assert [call.result() for call in calls] == [leaving.pid] * len(ids)
    assert own == [(leaving.pid, f"begins {gate}"), (leaving.pid, f"ends {gate}")]
    assert new == "new"
    assert next_owner != leaving.pid


async def wait_for_notes(live: Live, id: str, number: int) -> list[tuple[int, str]]:
    await live.noted(id, number)
    return await live.notes_by_process(id)


async def test_what_remains_after_the_grace_period_is_interrupted_and_begins_on_the_next_owner(
    live: Live,
) -> None:
    ids, gate = live.names(2), live.name("gate")
    async with (
        asyncio.timeout(150),
        stopping(live, Lingering, "linger", ids, gate, grace=0.5) as (leaving, calls),
    ):
        assert await leaving.process.wait() == 0
        for id in ids:
            notes = await wait_for_notes(live, id, 3)
            assert [what for _, what in notes] == [f"begins {gate}", "cleans up", f"begins {gate}"]
            assert notes[1][0] == leaving.pid != notes[2][0]
        await live.open(gate)
    assert leaving.pid not in [call.result() for call in calls]


async def test_a_finaliser_that_asks_what_nobody_answers_holds_no_stop_up(live: Live) -> None:
    ids, gate = live.names(2), live.name("gate")
    async with (
        asyncio.timeout(150),
        stopping(live, Clinging, "cling", ids, gate, grace=0.5) as (leaving, calls),
    ):
        assert await leaving.process.wait() == 0
        for id in ids:
            notes = await wait_for_notes(live, id, 3)
            begins = (f"begins {gate}", "asks nobody", f"begins {gate}")
            assert tuple(what for _, what in notes[:3]) == begins
            assert notes[1][0] == leaving.pid != notes[2][0]
        await live.open(gate)
    assert leaving.pid not in [call.result() for call in calls]


async def test_a_runner_that_has_stopped_is_gone_for_its_peers_at_once(live: Live) -> None:
    """It does not have to be found dead: it says so, and its sessions have ended."""
    async with asyncio.timeout(150):
        leaving = await live.processes.start_runner()
        await live.settled(live.runners)
        leaving.send(signal.SIGTERM)
        assert await leaving.process.wait() == 0
        row = "select died_at is not null from engine.runners where pid = $1"
        assert await live.database.fetchval(row, leaving.pid)
        assert not of(leaving, await owned(live))
