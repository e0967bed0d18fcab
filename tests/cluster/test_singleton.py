"""A singleton runs on exactly one live runner of its group."""

import asyncio
from contextlib import suppress
from datetime import timedelta

import pytest

from engine import ConfigurationError, Runner, Settings, Singleton, SingletonContext
from engine.cluster import singleton
from engine.node import postgres
from engine.storage.memory import MemoryDatabase
from engine.testing import TestCluster, VirtualClock
from tests.eventually import eventually

NONE = timedelta(0)


class Clerk(Singleton):
    """Notes who runs it; ends when it is asked to, or never."""

    def __init__(self, log: list[str], who: str, *, stubborn: bool = False) -> None:
        self.log = log
        self.who = who
        self.stubborn = stubborn

    async def run(self, context: SingletonContext) -> None:
        self.log.append(f"{self.who} begins")
        try:
            if self.stubborn:
                await asyncio.Event().wait()
            await context.cancelled.wait()
            self.log.append(f"{self.who} was asked")
        finally:
            self.log.append(f"{self.who} ends")


def alone(log: list[str]) -> bool:
    """Whether at no time two ran at once."""
    running = 0
    for entry in log:
        running += entry.endswith("begins")
        running -= entry.endswith("ends")
        if running > 1:
            return False
    return True


async def test_it_runs_while_its_runner_does_and_is_asked_to_end() -> None:
    log: list[str] = []
    async with TestCluster(Clerk(log, "a")):
        await eventually(lambda: log == ["a begins"])
    assert log == ["a begins", "a was asked", "a ends"]


async def test_one_that_ignores_the_request_is_cancelled_after_the_grace_period() -> None:
    log: list[str] = []
    grace = timedelta(milliseconds=50)
    async with TestCluster(Clerk(log, "a", stubborn=True), grace_period=grace):
        await eventually(lambda: log == ["a begins"])
    assert log == ["a begins", "a ends"]


async def test_it_begins_again_on_the_next_owner_when_the_shard_is_lost() -> None:
    log: list[str] = []
    async with TestCluster(Clerk(log, "a")) as cluster:
        await eventually(lambda: log == ["a begins"])
        await cluster.crash()
        await eventually(lambda: log == ["a begins", "a ends", "a begins"])


class Crowd(Singleton):
    """Counts how many of it have begun, run, and ran at once. ``leave`` is its cleanup."""

    name = "Crowd"

    def __init__(self) -> None:
        self.begun = self.inside = self.most = 0
        self.leave = asyncio.Event()

    async def run(self, context: SingletonContext) -> None:
        self.begun += 1
        self.inside += 1
        self.most = max(self.most, self.inside)
        try:
            await self.work(context)
        finally:
            self.inside -= 1

    async def work(self, context: SingletonContext) -> None:
        while not self.leave.is_set():
            with suppress(asyncio.CancelledError):
                await self.leave.wait()


async def test_however_often_its_shard_is_lost_it_waits_for_a_run_that_still_cleans_up() -> None:
    async with TestCluster(crowd := Crowd(), grace_period=NONE, handover_limit=NONE) as cluster:
        await eventually(lambda: crowd.begun == 1)
        for _ in range(3):
            await cluster.crash()
        assert crowd.begun == 1
        crowd.leave.set()
        await eventually(lambda: crowd.begun == 2)

    assert crowd.most == 1


async def test_its_shard_is_handed_over_when_no_run_is_left_of_earlier_epochs_either() -> None:
    crowd, database = Crowd(), MemoryDatabase(VirtualClock())
    first = TestCluster(crowd, database=database, grace_period=NONE, handover_limit=NONE)
    second = TestCluster(crowd, database=database)
    await first.__aenter__()
    await eventually(lambda: crowd.begun == 1)
    await first.crash()
    async with asyncio.TaskGroup() as group:
        group.create_task(first.__aexit__(None, None, None))
        group.create_task(second.__aenter__())
        await eventually(lambda: len(second.runner.epochs) >= 7)
        await second.settle()
        assert crowd.begun == 1
        crowd.leave.set()
    await eventually(lambda: crowd.begun == 2)
    await second.__aexit__(None, None, None)

    assert crowd.most == 1


async def test_one_whose_shard_is_lost_is_told_so_until_it_ends() -> None:
    class Deaf(Crowd):
        async def work(self, context: SingletonContext) -> None:
            while not context.cancelled.is_set():
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()  # cancelled once more

    async with TestCluster(crowd := Deaf(), grace_period=NONE, handover_limit=NONE) as cluster:
        await eventually(lambda: crowd.begun == 1)
        await cluster.crash()
        await eventually(lambda: crowd.begun == 2)

    assert crowd.most == 1


async def test_a_cancellation_of_its_own_making_is_a_failure() -> None:
    seen: list[int] = []

    class Misled(Singleton):
        async def run(self, context: SingletonContext) -> None:
            seen.append(context.failures)
            helper = asyncio.create_task(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(helper.cancel)
            await helper

    async with TestCluster(Misled()):
        await eventually(lambda: seen[:3] == [0, 1, 2])


async def test_one_that_fails_is_started_again_and_counts_its_failures() -> None:
    seen: list[int] = []

    class Fails(Singleton):
        async def run(self, context: SingletonContext) -> None:
            seen.append(context.failures)
            if len(seen) < 3:
                raise ConnectionError("not yet")

    async with TestCluster(Fails()):
        await eventually(lambda: seen == [0, 1, 2])


async def test_two_runners_run_it_once_and_hand_it_over_within_a_second(dsn: str) -> None:
    log: list[str] = []
    settings = Settings(dsn=dsn, shards_per_group=8)
    first = Runner(settings, open_storage=postgres(settings)).register(Clerk(log, "first"))
    second = Runner(settings, open_storage=postgres(settings)).register(Clerk(log, "second"))
    async with first:
        await eventually(lambda: log == ["first begins"])
        async with second:
            await eventually(lambda: len(first.epochs) == len(second.epochs) == 4)
            before = len(log)
            owner = "first" if log[-1].startswith("first") else "second"
        if owner == "second":
            async with asyncio.timeout(1):
                await eventually(lambda: log[before:][-1:] == ["first begins"])
    assert alone(log)
    assert log[-1] == "first ends"


async def test_one_that_is_registered_while_its_shard_is_given_away_is_the_next_owners(
    dsn: str,
) -> None:
    log: list[str] = []
    late: list[str] = []
    light = Settings(dsn=dsn, shards_per_group=1, handover_limit=timedelta(minutes=1), weight=0.001)
    heavy = light.model_copy(update={"weight": 1000.0})
    ending = asyncio.Event()

    class Slow(Clerk):
        async def run(self, context: SingletonContext) -> None:
            await super().run(context)
            await ending.wait()

    class Late(Clerk):
        pass

    first = Runner(light, open_storage=postgres(light)).register(Slow(log, "first"))
    second = Runner(heavy, open_storage=postgres(heavy)).register(
        Slow(log, "second"), Late(late, "second")
    )
    async with asyncio.timeout(40), first:
        await eventually(lambda: log == ["first begins"])
        async with second:
            await eventually(lambda: "first ends" in log)
            first.register(Late(late, "first"))
            ending.set()
            await eventually(lambda: "second begins" in log and late)
            assert late == ["second begins"]


async def test_one_that_did_well_for_a_while_begins_to_count_its_failures_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[int] = []
    monkeypatch.setattr(singleton, "_HEALTHY_AFTER", timedelta(0))

    class Fails(Singleton):
        async def run(self, context: SingletonContext) -> None:
            seen.append(context.failures)
            raise ConnectionError("once in a while")

    async with TestCluster(Fails()):
        await eventually(lambda: seen[:4] == [0, 1, 1, 1])


def test_two_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="two definitions are registered as 'Clerk'"):
        Runner(Settings(dsn="x")).register(Clerk([], "a"), Clerk([], "b"))
