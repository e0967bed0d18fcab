"""A body that is cut short: time-outs that were under way, and handlers that still ran."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from engine import (
    ExecutionFailed,
    Failed,
    Interrupted,
    Succeeded,
    Workflow,
    activity,
    signal,
    update,
)
from engine.workflow.loop import TIMEOUTS_COMPARE
from tests.workflow.conftest import World

HOUR = timedelta(hours=1)
SOON = 0.05


class Limited(Workflow[str, str]):
    """Is interrupted within a time-out, which expires before, during or after the cleanup."""

    async def execute(self, request: str) -> str:
        try:
            match request:
                case "cleanup":
                    await self.cleanup()
                case "cleanup of a helper":
                    async with asyncio.timeout(HOUR.total_seconds()):
                        await asyncio.gather(self.cleanup(), self.sleep(HOUR))
                case "expired":
                    await self.expired()
                case "caught":
                    await self.caught()
                case _:
                    await self.within_the_cleanup()
        except TimeoutError:
            if request == "caught":
                return "out of time"
            raise
        return "not reached"

    async def cleanup(self) -> None:
        async with asyncio.timeout(None) as scope:
            try:
                await self.wait()
            finally:
                scope.reschedule(asyncio.get_running_loop().time() + SOON)
                await self.sleep(HOUR)

    async def expired(self) -> None:
        async with asyncio.timeout(SOON):
            try:
                await self.sleep(HOUR)
            finally:
                await self.wait()

    async def caught(self) -> None:
        async with asyncio.timeout(None) as scope:
            try:
                await self.wait()
            except asyncio.CancelledError:
                scope.reschedule(asyncio.get_running_loop().time() + SOON)
            await self.sleep(HOUR)

    async def within_the_cleanup(self) -> None:
        try:
            await self.wait()
        except asyncio.CancelledError:
            async with asyncio.timeout(SOON):
                await self.sleep(HOUR)

    async def wait(self) -> None:
        await self.ready()
        await self.sleep(HOUR)

    @activity
    async def ready(self) -> str:
        return "ready"


async def test_an_interrupt_and_a_timeout_end_a_body_as_they_do_in_plain_asyncio(
    world: World,
) -> None:
    ways = ["cleanup", "cleanup of a helper", "expired", "caught", "within the cleanup"]
    async with world.cluster(Limited()) as cluster, asyncio.timeout(40):
        executions = [await cluster.client.start(Limited, way, key=way) for way in ways]

        async def ready() -> bool:
            histories = [await each.history() for each in executions]
            return all(any(e.payload == "ready" for e in history) for history in histories)

        async def ended() -> bool:
            return all([(await each.describe()).status.finished for each in executions])

        await world.until(cluster, ready)
        for execution in executions:
            await execution.interrupt("stop")
        await world.until(cluster, ended)
        outcomes = [await each.poll() for each in executions]
    assert outcomes[:4] == [Interrupted("stop")] * 3 + [Succeeded("out of time")]
    if TIMEOUTS_COMPARE:
        assert isinstance(outcomes[4], Failed)
        assert outcomes[4].error.type == "TimeoutError"
    else:  # nor does plain asyncio tell there that it was the timeout
        assert outcomes[4] == Interrupted("stop")


class Hall(Workflow[str, str]):
    """Fails, or is interrupted, while its handlers run; they clean up with steps."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.failed = False

    async def execute(self, request: str) -> str:
        self.compensate(self.note, "undone")
        await self.wait_until(lambda: self.failed)
        raise LookupError("no hall")

    @signal
    async def listen(self, how: str) -> None:
        try:
            await self.note("listening")
            await self.sleep(HOUR)
        finally:
            await self.note("listener leaves")
            if how == "slowly":
                await self.sleep(HOUR)

    @update
    async def speak(self) -> str:
        try:
            await self.sleep(HOUR)
        except asyncio.CancelledError:
            await self.note("speaker leaves")
            return "last words"
        return "all said"

    @signal
    def fail(self) -> None:
        self.failed = True

    @activity
    async def note(self, what: str) -> None:
        self.log.append(what)


@pytest.mark.parametrize("how", ["failed", "interrupted"])
async def test_handlers_clean_up_with_steps_before_the_compensations(
    world: World, how: str
) -> None:
    hall = Hall()
    async with world.cluster(hall) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Hall, how)
        await execution.signal(Hall.listen, "at once")
        spoken = asyncio.create_task(execution.update(Hall.speak))
        await world.until(cluster, lambda: _came(execution, "listen", "speak"))
        if how == "failed":
            await execution.signal(Hall.fail)
        else:
            await execution.interrupt("stop")
        outcome = await _outcome(world, cluster, execution)
        assert await spoken == "last words"
    assert sorted(hall.log[:-1]) == ["listener leaves", "listening", "speaker leaves"]
    assert hall.log[-1] == "undone"
    if how == "failed":
        assert isinstance(outcome, Failed)
        assert outcome.error.message == "no hall"
    else:
        assert outcome == Interrupted("stop")


async def test_an_interrupt_cuts_short_the_cleanup_of_handlers_but_no_compensation(
    world: World,
) -> None:
    hall = Hall()
    async with world.cluster(hall) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Hall, "slow")
        await execution.signal(Hall.listen, "slowly")
        await world.until(cluster, lambda: _logged(hall, "listening"))
        await execution.signal(Hall.fail)
        await world.until(cluster, lambda: _logged(hall, "listener leaves"))
        await cluster.crash()
        assert "undone" not in hall.log
        await execution.interrupt("go")
        with pytest.raises(ExecutionFailed, match="no hall"):
            await world.result(cluster, execution)
    assert [each for each in hall.log if each != "listening"] == ["listener leaves", "undone"]


async def _came(execution: Any, *names: str) -> bool:
    return {*names} <= {event.name for event in await execution.history()}


async def _logged(hall: Hall, what: str) -> bool:
    return what in hall.log


async def _outcome(world: World, cluster: Any, execution: Any) -> Any:
    async def ended() -> bool:
        return bool((await execution.describe()).status.finished)

    await world.until(cluster, ended)
    return await execution.poll()
