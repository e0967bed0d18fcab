"""Mailboxes: order per sender, as many at once as the entity says, and none wedges another."""

import asyncio
from collections import defaultdict
from datetime import timedelta
from functools import partial
from itertools import accumulate

import pytest

from engine import Client
from tests.chaos.cluster import Process
from tests.cluster.cast import Actor, Single, Triple, Unbounded
from tests.cluster.characters import Booth
from tests.cluster.live import Live
from tests.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def send_in_order(client: Client, id: str, sender: str, numbers: range) -> None:
    """As a sender does that awaits each send."""
    for number in numbers:
        await client.tell(client.entity(Single, id).note, f"{sender} {number}")


def by_sender(notes: list[str]) -> dict[str, list[int]]:
    """What each sender's messages were, in the order they were handled."""
    handled: dict[str, list[int]] = defaultdict(list)
    for note in notes:
        sender, number = note.split()
        handled[sender].append(int(number))
    return handled


async def test_messages_of_one_sender_reach_one_entity_in_the_order_they_were_sent(
    live: Live,
) -> None:
    id = live.name()
    async with asyncio.timeout(50), live.another_client() as other:
        await asyncio.gather(
            *(send_in_order(live.client, id, f"here{n}", range(20)) for n in range(3)),
            *(send_in_order(other, id, f"there{n}", range(20)) for n in range(3)),
        )
        handled = by_sender(await live.noted(id, 120))
    assert handled == {f"{where}{n}": [*range(20)] for where in ("here", "there") for n in range(3)}


async def test_the_order_of_a_sender_outlives_the_death_of_the_entitys_runner(live: Live) -> None:
    """What was in hand is handled again by the next owner; nothing is passed over or overtaken."""
    ids = live.names(5)
    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        for id in ids:
            group.create_task(send_in_order(live.client, id, "me", range(60)))
        for _ in range(2):
            await live.noted(ids[0], 5)
            await live.kill(live.runners[0])
            await live.restore()
    for id in ids:
        await live.client.entity(Single, id).note("me 60")
        by_process = await live.notes_by_process(id)
        handled = [note for _, note in by_process]
        assert list(dict.fromkeys(handled)) == [f"me {n}" for n in range(61)]
        # At least once, but no process goes back behind what it has done itself.
        assert len(set(by_process)) == len(by_process)
        for pid in {pid for pid, _ in by_process}:
            mine = by_sender([note for each, note in by_process if each == pid])["me"]
            assert mine == sorted(mine)


@pytest.mark.parametrize(("entity", "most"), [(Single, 1), (Triple, 3), (Unbounded, 8)])
async def test_an_entity_handles_as_many_messages_at_once_as_it_says_and_no_more(
    live: Live, entity: type[Actor], most: int
) -> None:
    id, gate = live.name(), live.name("gate")
    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        for _ in range(8):
            group.create_task(live.client.entity(entity, id).wait_at(gate))
        await live.noted(id, most)
        assert await live.client.entity(entity, live.name()).echo("beside it") == "beside it"
        assert await live.notes(id) == [f"begins {gate}"] * most
        await live.open(gate)
    notes = await live.notes(id)
    assert len(notes) == 16
    assert max(accumulate(1 if note.startswith("begins") else -1 for note in notes)) == most


async def test_a_failure_a_bad_argument_and_an_unknown_handler_wedge_no_mailbox(live: Live) -> None:
    id = live.name()
    async with asyncio.timeout(50):
        exits = await asyncio.gather(
            live.send(Single, id, "refuse", '{"why":"no"}'),
            live.send(Single, id, "echo", '{"value":{"not":"a text"}}'),
            live.send(Single, id, "echo", "\xff{"),
            live.send(Single, id, "no_such_handler", "{}"),
            live.send(Single, id, "not_for_others", "{}"),
        )
        assert await live.client.entity(Single, id).echo("after") == "after"
    assert exits[0] == ["Failure", "LookupError: no"]
    assert [kind for kind, _ in exits[1:]] == ["Defect"] * 4


async def test_what_finds_a_mailbox_full_waits_unread_and_comes_in_order(live: Live) -> None:
    """However many they are, their runner looks at the database no more often than without them."""
    id, gate = live.name(), live.name("gate")
    async with asyncio.timeout(50):
        owner = await live.owner(live.address(Booth, id).shard)
        idle = await statements_in_a_second(live, owner)
        await live.client.tell(live.client.entity(Booth, id).wait_at, gate)
        for number in range(50):
            await live.client.tell(live.client.entity(Booth, id).note, f"{number}")
        await live.noted(id, 1)
        await owner.ask("poll_storage")
        assert await statements_in_a_second(live, owner) < 2 * idle + 50
        assert await live.notes(id) == [f"begins {gate}"]
        await live.open(gate)
        await live.noted(id, 52)
    numbers = [f"{number}" for number in range(50)]
    assert await live.notes(id) == [f"begins {gate}", f"ends {gate}", *numbers]


async def statements_in_a_second(live: Live, runner: Process) -> int:
    before = await runner.statements()
    until = await live.database.fetchval("select clock_timestamp()") + timedelta(seconds=1)
    await eventually(partial(live.database.fetchval, "select clock_timestamp() > $1", until))
    return await runner.statements() - before
