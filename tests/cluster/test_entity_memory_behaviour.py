"""Entities in memory: so many at once, for as long as they are of use; others are built anew."""

import asyncio
from functools import partial

import pytest

from tests.chaos.cluster import Process
from tests.cluster.cast import Single
from tests.cluster.characters import Adrift, Fleeting
from tests.cluster.live import Live
from tests.eventually import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]


async def holds(runner: Process, number: int) -> bool:
    """Whether so many entities are in its memory."""
    return bool(await runner.ask("active") == number)


async def test_an_idle_entity_leaves_memory_and_comes_back_without_what_it_remembered(
    live: Live,
) -> None:
    entity = live.client.entity(Fleeting, live.name())
    async with asyncio.timeout(100):
        owner = await live.greedy_runner()
        assert await entity.remember("before") == ["before"]
        await eventually(partial(holds, owner, 0), timeout=30)
        assert await entity.remember("after") == ["after"]


async def test_an_entity_that_is_kept_alive_stays_until_that_is_over(live: Live) -> None:
    """Whatever comes and goes beside it, and however little room there is."""
    entity = live.client.entity(Fleeting, live.name())
    async with asyncio.timeout(100):
        owner = await live.greedy_runner(max_resident=1)
        await entity.stay(True)
        await entity.remember("first")
        for id in live.names(5):
            assert await live.client.entity(Fleeting, id).remember("other") == ["other"]
        await eventually(partial(holds, owner, 1), timeout=30)
        assert await entity.remember("second") == ["first", "second"]
        await entity.stay(False)
        await eventually(partial(holds, owner, 0), timeout=30)
        assert await entity.remember("third") == ["third"]


async def test_a_runner_holds_as_many_entities_as_it_may_and_all_get_on(live: Live) -> None:
    ids = live.names(20)
    most = 0
    async with asyncio.timeout(100):
        owner = await live.greedy_runner(max_resident=2)
        async with asyncio.TaskGroup() as group:
            for id in ids:
                group.create_task(tell_in_order(live, id, 5))
        for id in ids:
            while len(await live.notes(id)) < 5:
                most = max(most, await owner.ask("active"))
    assert most <= 2
    for id in ids:
        assert await live.notes(id) == [f"{number}" for number in range(5)]


async def tell_in_order(live: Live, id: str, number: int) -> None:
    for each in range(number):
        await live.client.tell(live.client.entity(Single, id).note, f"{each}")


async def test_who_finds_all_places_taken_by_the_busy_waits_for_one_to_be_free(live: Live) -> None:
    first, second, third = live.names(3)
    gates = live.names(2, "gate")
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        owner = await live.greedy_runner(max_resident=2)
        for id, gate in zip((first, second), gates, strict=True):
            group.create_task(live.client.entity(Single, id).wait_at(gate))
            await live.noted(id, 1)
        late = group.create_task(live.client.entity(Single, third).note("at last"))
        await eventually(partial(live.requests, third))
        await owner.ask("poll_storage")
        assert await live.notes(third) == []
        await live.open(gates[0])
        assert await late == owner.pid
        assert await live.notes(second) == [f"begins {gates[1]}"]
        await live.open(gates[1])


async def test_a_defect_rebuilds_the_entity_and_replays_what_was_in_flight(live: Live) -> None:
    id, gate = live.name(), live.name("gate")
    entity = live.client.entity(Adrift, id)
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        await entity.remember("wrong")
        in_flight = group.create_task(entity.wait_at(gate))
        await live.noted(id, 1)
        assert await entity.break_down(2) == []
        await live.open(gate)
    notes = await live.notes(id)
    assert notes.count("breaks down") == 3
    assert notes.count(f"begins {gate}") > 1
    assert notes.count(f"ends {gate}") == 1
    assert in_flight.result() in {runner.pid for runner in live.runners}


async def test_what_waits_behind_a_defect_is_handled_after_it_in_order(live: Live) -> None:
    id = live.name()
    entity = live.client.entity(Fleeting, id)
    async with asyncio.timeout(100):
        await live.client.tell(entity.break_down, 2)
        for number in range(3):
            await live.client.tell(entity.note, f"{number}")
        await live.noted(id, 6)
    assert await live.notes(id) == [*["breaks down"] * 3, "0", "1", "2"]
