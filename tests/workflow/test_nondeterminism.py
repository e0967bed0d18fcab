"""Code that changed under a running execution is noticed, blocks it, and harms nothing."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import Deferred, Pending, Status, Succeeded, Terminated, Workflow, activity
from engine.testing import TestCluster


class Plan(Workflow[int, int]):
    name = "Plan"
    go = Deferred(bool)

    def __init__(self, ran: list[str]) -> None:
        self.ran = ran

    @classmethod
    def key(cls, request: int) -> str:
        return "plan"

    @activity
    async def first(self, n: int) -> int:
        self.ran.append(f"first {n}")
        return n

    @activity
    async def second(self, n: int) -> int:
        self.ran.append(f"second {n}")
        return n

    @activity
    async def third(self, n: int) -> int:
        self.ran.append(f"third {n}")
        return n


class Original(Plan):
    name = "Plan"

    async def execute(self, request: int) -> int:
        total = await self.first(1)
        total += await self.second(2)
        await self.sleep(timedelta(minutes=1))
        await self.go.wait()
        return total + await self.third(3)


class Swapped(Plan):
    name = "Plan"

    async def execute(self, request: int) -> int:
        total = await self.second(2)
        total += await self.first(1)
        await self.sleep(timedelta(minutes=1))
        await self.go.wait()
        return total + await self.third(3)


class Dropped(Plan):
    name = "Plan"

    async def execute(self, request: int) -> int:
        total = await self.first(1)
        await self.sleep(timedelta(minutes=1))
        await self.go.wait()
        return total + await self.third(3)


class Added(Plan):
    name = "Plan"

    async def execute(self, request: int) -> int:
        total = await self.first(1)
        total += await self.third(9)
        total += await self.second(2)
        await self.sleep(timedelta(minutes=1))
        await self.go.wait()
        return total + await self.third(3)


class OtherArgument(Plan):
    name = "Plan"

    async def execute(self, request: int) -> int:
        total = await self.first(1)
        total += await self.second(22)
        await self.sleep(timedelta(minutes=1))
        await self.go.wait()
        return total + await self.third(3)


class OtherTimer(Plan):
    name = "Plan"

    async def execute(self, request: int) -> int:
        total = await self.first(1)
        total += await self.second(2)
        await self.sleep(timedelta(minutes=2))
        await self.go.wait()
        return total + await self.third(3)


class EndsEarly(Plan):
    name = "Plan"

    async def execute(self, request: int) -> int:
        return await self.first(1)


CASES = [
    (Swapped, "step first#1", "step second#1", "total = await self.second(2)"),
    (Dropped, "step second#1", "a timer", "self.sleep"),
    (Added, "step second#1", "step third#1", "await self.third(9)"),
    (OtherArgument, "step second#1", '{"n":22}', "await self.second(22)"),
    (OtherTimer, "timer #1", "waits until", "self.sleep"),
    (EndsEarly, "step second#1", "ends before it", "def execute"),
]


@pytest.mark.parametrize(("changed", "expected", "found", "line"), CASES)
async def test_a_changed_body_blocks_with_expected_found_and_line_and_goes_on_once_restored(
    changed: type[Plan], expected: str, found: str, line: str
) -> None:
    ran: list[str] = []
    async with TestCluster(Original(ran)) as before:
        execution = await before.client.start(Original, 5)
        await before.advance(timedelta(minutes=1, seconds=5))
        assert ran == ["first 1", "second 2"]
        database = before.database

    async with TestCluster(changed(ran), database=database) as during:
        handle: Any = during.client.execution(changed, execution.id)
        assert await handle.resolve(changed.go, True)
        await during.advance(timedelta(minutes=5))
        info = await handle.describe()
        assert info.status is Status.BLOCKED
        assert expected in info.why
        assert found in info.why
        assert __file__ in info.why
        assert line in source_line(info.why)
        assert isinstance(await handle.poll(), Pending)
        assert ran == ["first 1", "second 2"]  # nothing after the mismatch runs

    async with TestCluster(Original(ran), database=database) as after:
        await after.advance(timedelta(seconds=5))
        assert await after.client.execution(Original, execution.id).poll() == Succeeded(6)
        assert ran == ["first 1", "second 2", "third 3"]


def source_line(why: str) -> str:
    """The line of this file that the message points at."""
    number = int(why.split(f"{__file__}:")[1].split(maxsplit=1)[0])
    lines = Path(__file__).read_text(encoding="utf-8").splitlines(keepends=True)
    return "".join(lines[number - 1 : number + 1])


async def test_a_joiner_goes_on_waiting_while_the_execution_is_blocked() -> None:
    ran: list[str] = []
    async with TestCluster(Original(ran)) as before:
        execution = await before.client.start(Original, 5)
        await before.advance(timedelta(seconds=5))
        database = before.database
    async with TestCluster(Swapped(ran), database=database) as during:
        await during.advance(timedelta(minutes=5))
        handle = during.client.execution(Swapped, execution.id)
        assert (await handle.describe()).status is Status.BLOCKED
        with pytest.raises(TimeoutError):
            await handle.join(timedelta(milliseconds=50))


async def test_one_that_was_to_be_terminated_before_it_was_known_to_be_blocked_ends() -> None:
    ran: list[str] = []
    async with TestCluster(Original(ran)) as before:
        execution = await before.client.start(Original, 5)
        await before.advance(timedelta(minutes=1, seconds=5))
        database = before.database
    async with TestCluster(Swapped(ran), database=database) as during:
        handle = during.client.execution(Swapped, execution.id)
        assert (await handle.describe()).status is Status.SUSPENDED
        await handle.terminate("enough")  # which has it replayed
        await during.settle()
        assert await handle.poll() == Terminated("enough")
    assert ran == ["first 1", "second 2"]
