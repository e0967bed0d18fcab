"""Shard groups, weights, groups of handlers, and who hears of what is registered."""

import asyncio
from collections import Counter

import pytest

from tests.cluster.cast import ANNEX, Annexed, Single
from tests.cluster.characters import Desk
from tests.cluster.live import Live
from tests.eventually import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]


async def test_messages_for_a_group_wait_until_a_runner_serves_it_and_others_do_not(
    live: Live,
) -> None:
    first, second = live.names(2)
    async with asyncio.timeout(150):
        for id in (first, second):
            await live.client.tell(live.client.entity(Annexed, id).note, "waits")
        assert await live.client.entity(Single, live.name()).echo("not held up") == "not held up"
        assert await live.notes(first) == []
        only = await live.processes.start_runner(groups=ANNEX)
        for id in (first, second):
            await live.noted(id, 1)
            assert await live.notes_by_process(id) == [(only.pid, "waits")]
        assert await live.client.entity(Annexed, first).note("served") == only.pid
        for runner in live.runners:
            command = {"entity": "Annexed", "entity_id": first, "method": "note", "args": ["hm"]}
            assert await runner.ask("call", **command) == only.pid


async def test_a_runner_takes_shards_of_its_groups_only_and_shares_each_with_its_peers(
    live: Live,
) -> None:
    async with asyncio.timeout(150):
        only = await live.processes.start_runner(groups=ANNEX)
        await live.settled([only], ANNEX)
        both = await live.processes.start_runner(groups=f"default,{ANNEX}")
        await live.settled([only, both], ANNEX)
        default = [runner for runner in live.runners if runner is not only]
        await live.settled(default)
        owners = {group: await live.owners(group) for group in ("default", ANNEX)}

        async def as_told() -> bool:
            told = [
                (group, number, runner.pid)
                for runner in live.runners
                for group, number, _ in await runner.ask("shards")
            ]
            assert sorted(told) == sorted(
                (group, number, pid) for group in owners for number, pid in owners[group].items()
            )
            return True

        await eventually(as_told)
        id = live.name()
        assert await live.client.entity(Annexed, id).note("here") in {only.pid, both.pid}
        await live.kill(only)
        await live.settled([both], ANNEX)
        assert await live.client.entity(Annexed, id).note("there") == both.pid
    assert set(owners["default"].values()) <= {runner.pid for runner in default}
    assert set(owners[ANNEX].values()) <= {only.pid, both.pid}


async def test_a_runner_of_twice_the_weight_owns_twice_the_shards(live: Live) -> None:
    async with asyncio.timeout(150):
        heavy = await live.processes.start_runner(weight=2 * live.settings.weight)
        await live.settled(live.runners)
        counts = Counter((await live.owners()).values())
        exact = live.shards / (live.size + 2)
        for runner in live.runners:
            weight = 2 if runner is heavy else 1
            assert abs(counts[runner.pid] - weight * exact) <= 1
        ids = live.names(20)
        ran = await asyncio.gather(*(live.client.entity(Single, id).note("") for id in ids))
        owners = await live.owners()
        assert ran == [owners[live.address(Single, id).shard.number] for id in ids]


async def test_an_entity_answers_to_handlers_of_its_groups_wherever_it_lives(live: Live) -> None:
    """Those of mixins, under their own names too, and one that goes on with a mixin's."""
    async with asyncio.timeout(150):
        for id in live.names(5):
            desk = live.client.entity(Desk, id)
            assert await desk.add([1, 2, 3]) == 6
            await live.client.tell(desk.sign, id)
            assert await desk.echo("its own") == "its own"
            by_name = {"type": "Desk", "id_of": id, "tag": "sign-off", "arguments": {"who": id}}
            for runner in live.runners:
                assert await runner.ask("send_by_name", **by_name) == ["Success", "null"]
            assert await live.noted(id, live.size + 2) == [
                "adds [1, 2, 3]",
                *["signed"] * (live.size + 1),
            ]


async def test_each_runner_tells_of_what_is_registered_with_it_from_the_subscription_on(
    live: Live,
) -> None:
    name = live.name("Clerk")
    async with asyncio.timeout(150):
        told = {runner.pid: await runner.ask("registrations") for runner in live.runners}
        await live.register("Clerk", name)
        for runner in live.runners:
            before = told[runner.pid]
            assert ["entity", "Single", "default"] in before
            assert ["entity", "Annexed", ANNEX] in before
            assert ["singleton", "Clerk", "default"] in before
            assert await runner.ask("registrations") == [*before, ["singleton", name, "default"]]
