"""Dead letters: what keeps killing its process or breaking its entity is set aside, and retried."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine import ErrorDetails, RequestFailed
from tests.cluster.cast import Single
from tests.cluster.characters import Fleeting
from tests.cluster.live import Live
from tests.eventually import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]

LIMIT = 4


@asynccontextmanager
async def supervised(live: Live) -> AsyncIterator[None]:
    """Runners of little patience, each replaced when it has died."""

    async def supervise() -> None:
        while True:
            while len(live.runners) < live.size:
                await live.processes.start_runner(max_deliveries=LIMIT)
            await asyncio.sleep(0.05)

    await live.kill(*live.runners)
    supervisor = asyncio.create_task(supervise())
    try:
        # Who takes over from a dead owner counts that against what came since, too.
        await eventually(lambda: len(live.runners) == live.size, timeout=30)
        await live.settled(live.runners)
        yield
    finally:
        supervisor.cancel()
        await asyncio.wait([supervisor])
        await live.kill(*live.runners)


async def test_a_message_that_kills_its_process_is_a_dead_letter_until_it_is_retried(
    live: Live,
) -> None:
    """What was beside it is answered; the retry's answer is for all who ask with the same key."""
    id, safe = live.name(), live.name("gate")
    killer = live.client.entity(Fleeting, id, key="once")
    async with asyncio.timeout(150), supervised(live):
        async with asyncio.TaskGroup() as group:
            dead = group.create_task(failure(killer, safe))
            beside = [
                group.create_task(live.client.entity(Single, each).note("beside"))
                for each in live.names(20)
            ]
        # On a busy machine a runner may be lost that has not begun it yet, which counts as well.
        assert 0 < len(await live.notes(id)) <= LIMIT
        (letter,) = (await live.outlast("dead", "--id", id)).lines
        await live.open(safe)
        assert (await live.outlast("dead", "retry", letter["request_id"])).code == 0
        assert await live.exit_of(int(letter["request_id"])) == ["Success", '"safe now"']
        assert await killer.explode(safe) == "safe now"
        assert (await live.outlast("dead", "--id", id)).lines == []
    assert f"lost {LIMIT} times" in dead.result().message
    assert all(each.result() for each in beside)
    assert (letter["entity"], letter["method"]) == ("Fleeting", "explode")
    assert letter["payload"] == {"safe": safe}
    assert letter["error"]["type"] == dead.result().type == "DeliveryFailed"


async def failure(killer: Fleeting, safe: str) -> ErrorDetails:
    with pytest.raises(RequestFailed) as failed:
        await killer.explode(safe)
    return failed.value.error


async def test_a_message_that_breaks_its_entity_is_a_dead_letter_and_the_next_is_handled(
    live: Live,
) -> None:
    id = live.name()
    entity = live.client.entity(Fleeting, id)
    async with asyncio.timeout(100):
        await live.greedy_runner(max_deliveries=LIMIT)
        with pytest.raises(RequestFailed, match="DeliveryFailed"):
            await entity.break_down(1000)
        assert await entity.remember("next") == ["next"]
        (letter,) = (await live.outlast("dead", "--id", id)).lines
    assert await live.notes(id) == ["breaks down"] * LIMIT
    assert "what it remembers is wrong" in letter["error"]["cause"]["message"]
