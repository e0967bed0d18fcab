"""Singletons: each on one live runner of its group, handed over whatever becomes of that one."""

import asyncio
import logging
import random
import signal
from collections.abc import Collection
from datetime import timedelta
from itertools import pairwise

import pytest

from engine.cluster.singleton import singleton_shard
from tests.chaos.cluster import Process
from tests.cluster.cast import ANNEX, AnnexedClerk, Clerk
from tests.cluster.live import Live
from tests.cluster.newcomers import FAILURES
from tests.eventually import eventually

log = logging.getLogger(__name__)
pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]
GAP = """
    select extract(epoch from max(at) filter (where what = 'begins') - $3)
    from notes where who = $1 and pid <> $2
"""


async def hired(live: Live, kind: str = "Clerk") -> str:
    """A singleton of a test's own, which every runner serves."""
    name = live.name(kind)
    await live.register(kind, name)
    return name


async def keeper(live: Live, name: str, group: str = "default") -> Process:
    """The process that runs it, or ought to."""
    return await live.owner(singleton_shard(group, live.shards, name))


async def with_a_peer(live: Live, name: str, kind: str = "Clerk") -> Process:
    """Who runs it, once there is at least one other runner to hand it to."""
    if live.size == 1:
        await live.processes.start_runner()
        await live.register(kind, name)
        await live.settled(live.runners)
    return await running(live, name)


async def running(live: Live, name: str) -> Process:
    """The process that ought to run it, as soon as it has begun there; that may be another one
    meanwhile, as its shard moves."""

    async def it_runs() -> Process:
        owner = await keeper(live, name)
        notes = await live.notes_by_process(name)
        assert [what for pid, what in notes if pid == owner.pid][-1:] == ["begins"], (owner, notes)
        return owner

    return await eventually(it_runs, timeout=30)


async def begun_elsewhere(live: Live, name: str, gone: Process) -> list[tuple[int, str]]:
    """The notes, as soon as its last one is that it begins in another process."""

    async def begun() -> list[tuple[int, str]]:
        notes = await live.notes_by_process(name)
        pid, what = notes[-1]
        return notes if what == "begins" and pid != gone.pid else []

    return await eventually(begun, timeout=30)


def never_two(notes: list[tuple[int, str]], killed: Collection[int] = ()) -> bool:
    """Whether each had ended, or its process been killed, before the next began."""
    holder: int | None = None
    for pid, what in notes:
        if what == "begins":
            if holder is not None and holder not in killed:
                return False
            holder = pid
        elif what == "ends":
            if holder != pid:
                return False
            holder = None
    return True


async def test_each_runs_once_in_its_group_where_its_shard_is_owned(live: Live) -> None:
    async with asyncio.timeout(150):
        names = [await hired(live) for _ in range(6)]
        for name in names:
            await live.noted(name, 1)
        for runner in live.runners:
            id = live.name()
            command = {"entity": "Single", "entity_id": id, "method": "echo", "args": [id]}
            assert await runner.ask("call", **command) == id
        for name in names:
            owner = await keeper(live, name)
            assert await live.notes_by_process(name) == [(owner.pid, "begins")]


async def test_when_its_runner_stops_it_is_asked_to_end_and_begins_on_another_at_once(
    live: Live,
) -> None:
    async with asyncio.timeout(150):
        name = await hired(live)
        leaving = await with_a_peer(live, name)
        before = await live.notes_by_process(name)
        leaving.send(signal.SIGTERM)
        assert await leaving.process.wait() == 0
        notes = await begun_elsewhere(live, name, leaving)
        assert never_two(notes)
        assert [what for _, what in notes[len(before) :]] == ["is asked", "ends", "begins"]
        asked = "select max(at) from notes where who = $1 and pid = $2 and what = 'is asked'"
        at = await live.database.fetchval(asked, name, leaving.pid)
        gap = float(await live.database.fetchval(GAP, name, leaving.pid, at))
    log.info("numbers: handed over in %.0f ms", gap * 1000)
    assert gap < 10


async def test_when_its_runner_is_killed_it_begins_on_another(live: Live) -> None:
    async with asyncio.timeout(150):
        name = await hired(live)
        gone = await with_a_peer(live, name)
        at = await live.database.fetchval("select clock_timestamp()")
        await gone.kill()
        notes = await begun_elsewhere(live, name, gone)
        assert never_two(notes, killed=[gone.pid]), notes
        gap = float(await live.database.fetchval(GAP, name, gone.pid, at))
    log.info("numbers: begun again %.0f ms after the death", gap * 1000)
    assert gap < 20


async def test_when_its_runner_is_frozen_it_begins_on_another_and_ends_there_on_waking(
    live: Live,
) -> None:
    """Whatever the frozen process still does on waking, it is not the owner, and does not begin."""
    async with asyncio.timeout(150):
        name = await hired(live)
        frozen = await with_a_peer(live, name)
        frozen.freeze()
        try:
            notes = await begun_elsewhere(live, name, frozen)
        finally:
            frozen.thaw()
        taken_over = len(notes)

        async def woken() -> list[str]:
            later = (await live.notes_by_process(name))[taken_over:]
            return [what for pid, what in later if pid == frozen.pid]

        assert (await eventually(woken, timeout=30))[0] == "ends"
        await live.settled(live.runners)
        last = await keeper(live, name)

        async def it_runs() -> list[tuple[int, str]]:
            notes = await live.notes_by_process(name)
            notes.pop(notes.index((frozen.pid, "ends"), taken_over))
            assert notes[-1] == (last.pid, "begins"), notes
            return notes

        assert never_two(await eventually(it_runs, timeout=15), killed=[frozen.pid])


async def test_one_that_ignores_the_request_is_cancelled_and_ends_before_the_next_begins(
    live: Live,
) -> None:
    async with asyncio.timeout(150):
        name = await hired(live, "Stubborn")
        leaving = await with_a_peer(live, name, "Stubborn")
        leaving.send(signal.SIGTERM)
        assert await leaving.process.wait() == 0
        notes = await begun_elsewhere(live, name, leaving)
    assert never_two(notes)
    assert notes[-2] == (leaving.pid, "ends")


async def test_one_that_fails_is_started_again_ever_later_and_counts_anew_on_the_next_owner(
    live: Live,
) -> None:
    counted = [f"failures {n}" for n in range(FAILURES + 1)]
    async with asyncio.timeout(150):
        name = await hired(live, "Weak")
        assert await live.noted(name, len(counted)) == counted
        at = await live.database.fetch("select at from notes where who = $1 order by nth", name)
        gaps = [after["at"] - before["at"] for before, after in pairwise(at)]
        least = [timedelta(milliseconds=50) * 2**n for n in range(FAILURES)]
        assert all(gap >= pause for gap, pause in zip(gaps, least, strict=True)), gaps
        await (await keeper(live, name)).kill()
        await live.restore()
        await live.register("Weak", name)

        async def anew() -> list[str]:
            later = (await live.notes(name))[len(counted) :]
            return later if later[-1:] == counted[-1:] else []

        # The shard may move once more when the new runner comes.
        later = await eventually(anew, timeout=30)
    assert (later[0], later[-len(counted) :]) == (counted[0], counted)


async def test_a_singleton_runs_on_runners_of_its_group_only(live: Live) -> None:
    async with asyncio.timeout(150):
        default = {runner.pid for runner in live.runners}
        for pid, _ in await live.notes_by_process(AnnexedClerk.name):
            assert pid not in default
        before = len(await live.notes(AnnexedClerk.name))
        only = await live.processes.start_runner(groups=ANNEX)
        await live.noted(AnnexedClerk.name, before + 1)
        peer = await live.processes.start_runner(groups=f"default,{ANNEX}")
        await live.settled([only, peer], ANNEX)
        leaving = await keeper(live, AnnexedClerk.name, ANNEX)
        leaving.send(signal.SIGTERM)
        assert await leaving.process.wait() == 0
        notes = (await begun_elsewhere(live, AnnexedClerk.name, leaving))[before:]
        clerks = {pid for pid, _ in await live.notes_by_process(Clerk.name)}
    assert never_two(notes)
    assert {pid for pid, _ in notes} <= {only.pid, peer.pid}
    assert only.pid not in clerks


async def test_never_two_run_at_once_whatever_becomes_of_their_runners(live: Live) -> None:
    before = len(await live.notes(Clerk.name))
    killed: set[int] = set()
    async with asyncio.timeout(150):
        for number in random.sample([signal.SIGKILL, signal.SIGTERM], 2):
            ending = await running(live, Clerk.name)
            if live.size > 1 and random.random() < 0.5:
                await live.processes.start_runner()
            if number is signal.SIGKILL:
                killed.add(ending.pid)
            ending.send(number)
            await ending.process.wait()
            await live.restore()
        await running(live, Clerk.name)
        notes = (await live.notes_by_process(Clerk.name))[before:]
    begun = [index for index, (_, what) in enumerate(notes) if what == "begins"]
    assert len(begun) >= 2
    assert never_two(notes[begun[0] :], killed), notes
