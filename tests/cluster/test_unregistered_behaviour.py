"""Types that their owner does not serve: messages wait, in sight, and are answered in the end."""

import asyncio

import pytest

from engine import RequestFailed
from tests.cluster.characters import latecomer
from tests.cluster.live import Live

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]


async def waiting(live: Live, name: str) -> int:
    """How many messages to entities of the type wait, as the command line says."""
    ended = await live.outlast("entities", name)
    assert ended.code == 0, ended.err
    return sum(line["waiting"] for line in ended.lines)


async def test_a_type_that_is_registered_late_gets_what_waited_for_it_in_order(live: Live) -> None:
    name, id = live.name("Late"), live.name()
    entity = live.client.entity(latecomer(name), id)
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        for number in range(20):
            await live.client.tell(entity.note, f"{number}")
        call = group.create_task(entity.echo("answered"))
        for runner in live.runners:
            await runner.ask("poll_storage")
        assert await waiting(live, name) >= 20
        assert await live.notes(id) == []
        for runner in live.runners:
            await runner.ask("serve", type=name)
    assert call.result() == "answered"
    assert await live.notes(id) == [f"{number}" for number in range(20)]
    assert await waiting(live, name) == 0


async def test_what_its_owner_does_not_know_goes_on_as_soon_as_an_owner_does(live: Live) -> None:
    """As in a deploy: the next runner has the type, the former ones never will."""
    name, id = live.name("Late"), live.name()
    entity = live.client.entity(latecomer(name), id)
    async with asyncio.timeout(100):
        for number in range(5):
            await live.client.tell(entity.note, f"{number}")
        for runner in live.runners:
            await runner.ask("poll_storage")
        newcomer = await live.processes.start_runner(weight=1000)
        await newcomer.ask("serve", type=name)
        await live.noted(id, 5)
        expected = [(newcomer.pid, f"{number}") for number in range(5)]
    assert await live.notes_by_process(id) == expected


async def test_callers_of_a_type_that_nobody_registers_are_told_so_and_a_retry_is_answered(
    live: Live,
) -> None:
    name, id = live.name("Never"), live.name()
    entity = live.client.entity(latecomer(name), id, key="once")
    async with asyncio.timeout(100):
        owner = await live.greedy_runner(unregistered_timeout=0.5)
        with pytest.raises(RequestFailed, match=f"waited 0:00:00.500000 for {name}") as told:
            await entity.echo("hello")
        (letter,) = (await live.outlast("dead", "--type", name)).lines
        await owner.ask("serve", type=name)
        assert (await live.outlast("dead", "retry", letter["request_id"])).code == 0
        await live.exit_of(int(letter["request_id"]))
        assert await entity.echo("hello") == "hello"
        assert (await live.outlast("dead", "--type", name)).lines == []
    assert told.value.error.type == letter["error"]["type"] == "NotRegistered"
    assert letter["payload"] == {"value": "hello"}
