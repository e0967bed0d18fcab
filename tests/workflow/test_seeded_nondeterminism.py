"""Ten kinds of non-determinism, each seeded into one workflow: replay or lint finds the line."""

import inspect
import os
import random
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from engine import NonDeterminism, Workflow, activity
from engine.testing import Finding, History, TestCluster, lint_files, replay

HERE = Path(__file__)


class Part(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return request


class OtherPart(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return request


class Trip(Workflow[list[str], int]):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        await self.book("hotel")
        await self.pay(100)
        await self.sleep(timedelta(days=1))
        await self.run_child(Part, "tickets")
        await self.confirm()
        return len(request)

    @activity
    async def book(self, what: str) -> str:
        return what

    @activity
    async def pay(self, cents: int) -> int:
        return cents

    @activity
    async def confirm(self) -> None:
        pass

    @activity
    async def settle(self) -> None:
        pass


class Swapped(Trip):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        await self.pay(100)  # seeded
        await self.book("hotel")
        await self.sleep(timedelta(days=1))
        await self.run_child(Part, "tickets")
        await self.confirm()
        return len(request)


class Dropped(Trip):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        await self.book("hotel")
        await self.sleep(timedelta(days=1))  # seeded: the step before it is gone
        await self.run_child(Part, "tickets")
        await self.confirm()
        return len(request)


class Added(Trip):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        await self.book("hotel")
        await self.book("car")  # seeded
        await self.pay(100)
        await self.sleep(timedelta(days=1))
        await self.run_child(Part, "tickets")
        await self.confirm()
        return len(request)


class AddedAtTheEnd(Trip):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        await self.book("hotel")
        await self.pay(100)
        await self.sleep(timedelta(days=1))
        await self.run_child(Part, "tickets")
        await self.confirm()
        await self.settle()  # seeded
        return len(request)


class Renamed(Trip):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        await self.book("hotel")
        await self.pay(100)
        await self.sleep(timedelta(days=1))
        await self.run_child(Part, "tickets")
        await self.settle()  # seeded: confirm's new name
        return len(request)


class OtherArgument(Trip):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        await self.book("hotel")
        await self.pay(120)  # seeded
        await self.sleep(timedelta(days=1))
        await self.run_child(Part, "tickets")
        await self.confirm()
        return len(request)


class OtherChild(Trip):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        await self.book("hotel")
        await self.pay(100)
        await self.sleep(timedelta(days=1))
        await self.run_child(OtherPart, "tickets")  # seeded
        await self.confirm()
        return len(request)


class OtherTimer(Trip):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        await self.book("hotel")
        await self.pay(100)
        await self.sleep(timedelta(days=2))  # seeded
        await self.run_child(Part, "tickets")
        await self.confirm()
        return len(request)


class SetOrder(Trip):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        for each in set(request):  # seeded
            await self.book(each)
        return len(request)


class WallClock(Trip):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        await self.pay(time.time_ns())  # seeded
        return len(request)


class Random(Trip):
    name = "Trip"

    async def execute(self, request: list[str]) -> int:
        await self.pay(random.randrange(10**12))  # seeded
        return len(request)


PLACES = ["Rome", "Oslo", "Bonn", "Graz", "Lyon", "Bath", "Metz", "Brno"]


def seeded_line(changed: type[Trip]) -> int:
    lines, first = inspect.getsourcelines(changed)
    return next(first + n for n, line in enumerate(lines) if "# seeded" in line)


async def history_of(workflow: Trip) -> History:
    async with TestCluster(workflow, Part(), OtherPart()) as cluster:
        execution = await cluster.client.start(type(workflow), PLACES)
        await cluster.advance(timedelta(days=3))
        assert await execution.join() == len(PLACES)
        history = await execution.history()
        assert isinstance(history, History)
        return history


@pytest.fixture
async def recorded() -> History:
    """The history of the workflow as it was."""
    return await history_of(Trip())


CHANGES = [Swapped, Dropped, Added, AddedAtTheEnd, Renamed, OtherArgument, OtherChild, OtherTimer]


@pytest.mark.parametrize("changed", CHANGES)
async def test_replay_names_the_line_of_a_change(changed: type[Trip], recorded: History) -> None:
    with pytest.raises(NonDeterminism) as raised:
        await replay(recorded, changed())

    assert raised.value.where.startswith(f"{HERE}:{seeded_line(changed)} ")


async def test_replay_passes_what_has_not_changed(recorded: History) -> None:
    await replay(recorded, Trip())


@pytest.mark.parametrize("careless", [WallClock, Random])
async def test_replay_finds_what_is_drawn_anew(careless: type[Trip]) -> None:
    recorded = await history_of(careless())

    with pytest.raises(NonDeterminism) as raised:
        await replay(recorded, careless())

    assert raised.value.where.startswith(f"{HERE}:{seeded_line(careless)} ")


async def test_replay_in_another_process_finds_the_order_of_a_set(tmp_path: Path) -> None:
    """Every process has its own order; one of a few is another than that of the history."""
    exported = tmp_path / "trip.jsonl"
    exported.write_text((await history_of(SetOrder())).export(), encoding="utf-8")
    script = (
        "import asyncio, sys; sys.path.insert(0, '.');"
        "from engine.testing import load_histories, replay;"
        "from tests.workflow.test_seeded_nondeterminism import SetOrder;"
        f"asyncio.run(replay(load_histories({str(exported)!r})[0], SetOrder()))"
    )

    for seed in "1", "2", "3":
        done = subprocess.run(
            [sys.executable, "-c", script],
            cwd=HERE.parents[2],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            break

    assert "NonDeterminism" in done.stderr
    # It is noticed where the step is asked for.
    assert f"{HERE}:{seeded_line(SetOrder) + 1} " in done.stderr


@pytest.fixture(scope="module")
def found() -> list[Finding]:
    return lint_files([HERE])


@pytest.mark.parametrize(
    ("careless", "code"), [(SetOrder, "OUT107"), (WallClock, "OUT101"), (Random, "OUT102")]
)
def test_lint_names_the_line(careless: type[Trip], code: str, found: list[Finding]) -> None:
    assert [
        (each.line, each.code) for each in found if each.where.startswith(careless.__name__)
    ] == [(seeded_line(careless), code)]


def test_lint_says_nothing_of_the_others(found: list[Finding]) -> None:
    assert len(found) == 3
