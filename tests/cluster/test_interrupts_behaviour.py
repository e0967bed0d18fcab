"""Interrupts: stored, obeyed by whoever owns the request by then, and never a matter of moving."""

import asyncio
import signal
from datetime import timedelta
from functools import partial

import pytest

from engine import Interrupt, RequestFailed, Snowflake
from tests.cluster.cast import Single
from tests.cluster.characters import Lingering
from tests.cluster.live import GREEDY, Live
from tests.eventually import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

INTERRUPTED = ["Interrupted", ""]
WAITING = "select count(*) from engine.inbox where request_id = $1"
INTERRUPTS = f"{WAITING} and kind = 2"
EXITS = "select count(*) from engine.replies where request_id = $1 and kind <> 0"
DRAINING = "select draining from engine.runners where pid = $1"
HEEDING = [
    ("linger", True),
    ("ignore_clients", False),
    ("ignore_the_server", True),
    ("ignore_all", False),
]
"""The handlers, one of each mode, and whether they heed the interrupts of clients."""


async def begun(live: Live, id: str, method: str, *gates: str) -> int:
    """The id of a request that is being handled."""
    await live.client.tell(getattr(live.client.entity(Lingering, id), method), *gates)
    await live.noted(id, 1)
    return (await live.requests(id))[-1]


async def is_none(live: Live, query: str, request: int) -> bool:
    return bool(await live.database.fetchval(query, request) == 0)


async def one_exit_is_left(live: Live, request: int) -> None:
    """Nothing of it waits any more."""
    await eventually(partial(is_none, live, WAITING, request), timeout=30)
    assert await live.database.fetchval(EXITS, request) == 1


async def orphaned(live: Live, id: str, request: int) -> None:
    """The owner dies; what it had not noticed any more is a stored interrupt. There is another one,
    new only if there was none: what is in hand would be cut off by a newcomer's share."""
    address = live.address(Lingering, id)
    owner = await live.owner(address.shard)
    owner.freeze()
    interrupt = Interrupt(request_id=Snowflake(request), address=address)
    assert await live.client._node.storage.interrupt([interrupt]) == [True]
    assert await live.database.fetchval(INTERRUPTS, request) == 1
    await live.kill(owner)
    if not live.runners:
        await live.restore()


async def test_a_running_request_is_cancelled_cleans_up_and_ends_as_interrupted(
    live: Live,
) -> None:
    id, gate = live.name(), live.name("gate")
    async with asyncio.timeout(100):
        request = await begun(live, id, "linger", gate)
        await live.interrupt(Lingering, id, request)
        assert await live.exit_of(request) == INTERRUPTED
        await live.interrupt(Lingering, id, request)  # once more, after its exit
        assert await live.client.entity(Lingering, id).echo("after") == "after"
        await one_exit_is_left(live, request)
    assert await live.notes(id) == [f"begins {gate}", "cleans up"]


async def test_queued_requests_end_without_having_run_and_the_others_in_their_order(
    live: Live,
) -> None:
    """In the mailbox as in the database, wherever the interrupt comes from."""
    id, gate = live.name(), live.name("gate")
    entity = live.client.entity(Lingering, id)
    async with asyncio.timeout(100):
        running = await begun(live, id, "linger", gate)
        for number in range(6):
            await live.client.tell(entity.note, f"{number}")
        queued = [request for request in await live.requests(id) if request != running]
        for request in queued[::2]:
            await live.interrupt(Lingering, id, request)
            assert await live.exit_of(request) == INTERRUPTED
        assert await live.notes(id) == [f"begins {gate}"]
        await live.open(gate)
        await live.exit_of(queued[-1])
        for request in queued:
            await one_exit_is_left(live, request)
    assert await live.notes(id) == [f"begins {gate}", f"ends {gate}", "1", "3", "5"]


async def test_a_request_for_later_ends_at_once(live: Live) -> None:
    id = live.name()
    at = await live.database.fetchval("select clock_timestamp()") + timedelta(hours=1)
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        call = group.create_task(outcome(live, id, at))
        (request,) = await eventually(partial(live.requests, id))
        await live.interrupt(Single, id, request)
        await one_exit_is_left(live, request)
    assert call.result() == "Interrupted"
    assert await live.notes(id) == []


async def outcome(live: Live, id: str, at: object) -> str:
    with pytest.raises(RequestFailed) as ended:
        await live.client.entity(Single, id, at=at).note("too late")  # type: ignore[arg-type]
    return ended.value.error.type


@pytest.mark.parametrize(("method", "heeds"), HEEDING)
async def test_a_handler_heeds_the_interrupts_of_clients_unless_it_says_otherwise(
    live: Live, method: str, heeds: bool
) -> None:
    id, gate = live.name(), live.name("gate")
    async with asyncio.timeout(100):
        request = await begun(live, id, method, gate)
        await live.interrupt(Lingering, id, request)
        await eventually(partial(is_none, live, INTERRUPTS, request), timeout=30)
        await live.open(gate)
        kind, _ = await live.exit_of(request)
        await one_exit_is_left(live, request)
    assert kind == ("Interrupted" if heeds else "Success")
    assert (await live.notes(id))[1:] == ["cleans up" if heeds else f"ends {gate}"]


@pytest.mark.parametrize(("method", "heeds"), HEEDING)
async def test_an_interrupt_that_its_owner_died_before_seeing_reaches_the_next_one(
    live: Live, method: str, heeds: bool
) -> None:
    """Which does not even begin the request, or finishes it if it ignores clients."""
    id, gate = live.name(), live.name("gate")
    async with asyncio.timeout(100):
        request = await begun(live, id, method, gate)
        await orphaned(live, id, request)
        await eventually(partial(is_none, live, INTERRUPTS, request), timeout=30)
        await live.open(gate)
        kind, _ = await live.exit_of(request)
        await one_exit_is_left(live, request)
    assert kind == ("Interrupted" if heeds else "Success")
    again = [] if heeds else [f"begins {gate}", f"ends {gate}"]
    assert await live.notes(id) == [f"begins {gate}", *again]


async def test_a_request_whose_owner_died_while_it_cleaned_up_is_not_begun_again(
    live: Live,
) -> None:
    id, gate, leave = live.name(), live.name("gate"), live.name("leave")
    async with asyncio.timeout(100):
        request = await begun(live, id, "linger", gate, leave)
        await live.interrupt(Lingering, id, request)
        await live.noted(id, 2)
        await live.kill(await live.owner(live.address(Lingering, id).shard))
        await live.restore()
        assert await live.exit_of(request) == INTERRUPTED
        await one_exit_is_left(live, request)
    assert await live.notes(id) == [f"begins {gate}", "cleans up"]


@pytest.mark.parametrize("method", [method for method, _ in HEEDING])
async def test_a_runner_that_stops_interrupts_no_request_for_good(live: Live, method: str) -> None:
    """What has not ended in the grace period is handled again by the next owner."""
    id, gate = live.name(), live.name("gate")
    async with asyncio.timeout(100):
        await live.greedy_runner(grace_period=0.3)
        request = await begun(live, id, method, gate)
        leaver = await live.owner(live.address(Lingering, id).shard)
        leaver.send(signal.SIGTERM)
        assert await leaver.process.wait() == 0
        await live.noted(id, 3)
        await live.open(gate)
        kind, pid = await live.exit_of(request)
        await one_exit_is_left(live, request)
    begins = f"begins {gate}"
    assert await live.notes(id) == [begins, "cleans up", begins, f"ends {gate}"]
    assert kind == "Success"
    assert int(pid) in {each.pid for each in live.runners}


async def test_what_ends_while_its_runner_stops_is_handled_once(live: Live) -> None:
    id, gate = live.name(), live.name("gate")
    async with asyncio.timeout(100):
        leaver = await live.greedy_runner(grace_period=30)
        request = await begun(live, id, "linger", gate)
        owner = await live.owner(live.address(Lingering, id).shard)
        leaver.send(signal.SIGTERM)
        await eventually(partial(live.database.fetchval, DRAINING, leaver.pid), timeout=30)
        await live.open(gate)
        assert await live.exit_of(request) == ["Success", str(owner.pid)]
        assert await leaver.process.wait() == 0
    assert await live.notes(id) == [f"begins {gate}", f"ends {gate}"]


async def test_a_runner_that_joins_interrupts_no_request_for_good(live: Live) -> None:
    """What does not let its shard go soon is handled again by the newcomer, unless it ignores the
    server: the shard waits for it then."""
    cut, stays, gate = live.name("cut"), live.name("stays"), live.name("gate")
    async with asyncio.timeout(100):
        requests = [
            await begun(live, cut, "linger", gate),
            await begun(live, stays, "ignore_the_server", gate),
        ]
        newcomer = await live.processes.start_runner(weight=GREEDY)
        if live.address(Lingering, cut).shard != live.address(Lingering, stays).shard:
            await live.noted(cut, 3)
        else:  # one waits for the other
            await eventually(partial(live.assigned, live.runners), timeout=30)
        assert await live.notes(stays) == [f"begins {gate}"]
        await live.open(gate)
        exits = [await live.exit_of(request) for request in requests]
        await live.settled(live.runners)
    assert [kind for kind, _ in exits] == ["Success"] * 2
    assert await live.notes(stays) == [f"begins {gate}", f"ends {gate}"]
    assert await live.owner(live.address(Lingering, stays).shard) is newcomer
