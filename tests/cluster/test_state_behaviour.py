"""State: one with the reply, whoever dies; readers beside writers; seen and edited from outside."""

import asyncio
import json
from functools import partial
from typing import Any

import pytest

from engine import RequestFailed
from tests.cluster.characters import Account, Sum
from tests.cluster.live import Live
from tests.eventually import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

STORED = "select version, payload from engine.entity_states where entity_id = $1"
ONE_WRITE = """
    select s.xmin = r.xmin from engine.entity_states s
    join engine.envelopes e using (entity_type, entity_id)
    join engine.replies r using (request_id)
    where s.entity_id = $1 order by request_id desc limit 1
"""


async def stored(live: Live, id: str) -> Sum:
    row = await live.database.fetchrow(STORED, id)
    return Sum() if row is None else Sum.model_validate_json(row["payload"])


async def test_the_change_and_the_reply_are_one_write(live: Live) -> None:
    id = live.name()
    async with asyncio.timeout(100):
        for number in range(1, 6):
            total = await live.client.entity(Account, id).add(f"{number}", 10)
            assert (await stored(live, id)).total == total == number * 10
            assert await live.database.fetchval(ONE_WRITE, id)


async def test_a_state_is_loaded_with_the_entity_wherever_it_comes_to_be(live: Live) -> None:
    id = live.name()
    async with asyncio.timeout(100):
        assert await live.client.entity(Account, id).add("first", 1) == 1
        await live.kill(*live.runners)
        await live.restore()
        assert await live.client.entity(Account, id).add("second", 10) == 11
        await live.greedy_runner()
        expected = Sum(total=11, added=["first", "second"])
        assert await live.client.entity(Account, id).read() == expected


async def test_the_state_is_the_sum_of_what_was_acknowledged_though_runners_are_killed(
    live: Live,
) -> None:
    """Each change is made once, however often its message was handled."""
    ids = live.names(8)
    acknowledged: dict[str, list[str]] = {id: [] for id in ids}

    async def add_all(id: str, sender: str) -> None:
        for number in range(25):
            await live.client.entity(Account, id).add(f"{sender} {number}", number)
            acknowledged[id].append(f"{sender} {number}")

    def so_many(number: int) -> bool:
        return len(acknowledged[ids[0]]) >= number

    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        for id in ids:
            group.create_task(add_all(id, "one"))
            group.create_task(add_all(id, "another"))
        for number in (5, 20):
            await eventually(partial(so_many, number), timeout=60)
            await live.kill(live.runners[0])
            await live.restore()
    for id in ids:
        state = await live.client.entity(Account, id).read()
        assert sorted(state.added) == sorted(acknowledged[id])
        assert state.total == 2 * sum(range(25))
        for sender in ("one", "another"):
            mine = [what for what in state.added if what.startswith(sender)]
            assert mine == [f"{sender} {number}" for number in range(25)]


async def test_a_change_whose_runner_died_before_the_reply_was_never_made(live: Live) -> None:
    id, gate = live.name(), live.name("gate")
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        account = live.client.entity(Account, id)
        await account.add("first", 1)
        call = group.create_task(account.add_and_wait("second", 10, gate))
        await live.noted(id, 1)
        await live.kill(await live.owner(live.address(Account, id).shard))
        assert await stored(live, id) == Sum(total=1, added=["first"])
        await live.restore()
        await live.noted(id, 2)
        await live.open(gate)
    assert call.result() == 11
    assert await stored(live, id) == Sum(total=11, added=["first", "second"])


async def test_a_handler_that_raises_has_changed_nothing(live: Live) -> None:
    id = live.name()
    async with asyncio.timeout(100):
        account = live.client.entity(Account, id)
        await account.add("first", 1)
        with pytest.raises(RequestFailed, match="after the change"):
            await account.add_and_refuse("second", 10)
        assert await account.read() == await stored(live, id) == Sum(total=1, added=["first"])
        assert await account.add("third", 100) == 101


async def test_readers_run_beside_a_writer_and_see_what_was_saved_last(live: Live) -> None:
    id, reading, writing = live.name(), live.name("gate"), live.name("gate")
    before = Sum(total=1, added=["first"])
    async with (
        asyncio.timeout(100),
        live.another_client() as other,
        asyncio.TaskGroup() as group,
    ):
        account = live.client.entity(Account, id)
        await account.add("first", 1)
        reader = group.create_task(account.read_at(reading))
        await live.noted(id, 1)
        writer = group.create_task(account.add_and_wait("second", 10, writing))
        await live.noted(id, 2)
        assert await other.entity(Account, id).read() == before
        await live.open(reading)
        assert await reader == before
        await live.open(writing)
        assert await writer == 11
        assert await other.entity(Account, id).read() == await stored(live, id)
    assert await stored(live, id) == Sum(total=11, added=["first", "second"])


async def test_a_reader_cannot_write(live: Live) -> None:
    id = live.name()
    async with asyncio.timeout(100):
        account = live.client.entity(Account, id)
        await account.add("first", 1)
        with pytest.raises(RequestFailed, match="readonly"):
            await account.cheat("second", 10)
        assert await account.read() == await stored(live, id) == Sum(total=1, added=["first"])


async def shown(live: Live, id: str) -> Any:
    """The version and the state, as the command line shows them."""
    ended = await live.outlast("state", f"Account/{id}")
    assert ended.code == 0, ended.err
    (line,) = ended.lines
    return line["version"], line["state"]


async def edited(live: Live, id: str, version: int, state: object) -> int:
    """Replace the state from the command line; its exit code."""
    replacing = ["--set", json.dumps(state), "--version", f"{version}"]
    return (await live.outlast("state", f"Account/{id}", *replacing)).code


async def test_the_command_line_shows_a_state_and_replaces_it_at_the_version_that_was_seen(
    live: Live,
) -> None:
    id = live.name()
    account = live.client.entity(Account, id)
    async with asyncio.timeout(100):
        await account.add("first", 1)
        version, state = await shown(live, id)
        assert (version, state) == (1, {"total": 1, "added": ["first"]})
        assert await edited(live, id, version, {"total": 5, "added": ["edited"]}) == 0
        assert await account.add("second", 10) == 15
        assert await edited(live, id, version, {"total": 0, "added": []}) == 1
        assert await edited(live, id, 3, {"total": "no number"}) == 1
        assert await shown(live, id) == (3, {"total": 15, "added": ["edited", "second"]})
        await live.kill(*live.runners)
        await live.restore()
        assert await account.read() == Sum(total=15, added=["edited", "second"])


async def test_edits_from_the_command_line_and_handlers_lose_nothing_of_each_other(
    live: Live,
) -> None:
    id = live.name()
    done = asyncio.Event()

    async def add() -> int:
        number = 0
        while not done.is_set():
            await live.client.entity(Account, id).add("added", 1)
            number += 1
        return number

    async def edit() -> bool:
        """Look and write, unless somebody was in between."""
        version, state = await shown(live, id)
        state["total"] += 1000
        return await edited(live, id, version, state) == 0

    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        await live.client.entity(Account, id).add("added", 1)
        adding = group.create_task(add())
        refused = not await edit()
        done.set()
        await adding
        await eventually(edit, timeout=30)
    edits = 1 if refused else 2
    assert (await stored(live, id)).total == 1 + adding.result() + 1000 * edits
