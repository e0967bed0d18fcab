"""Heartbeats of steps: details for the next attempt, and attempts that fall silent."""

import asyncio
import threading
from datetime import timedelta
from typing import Any

import pytest

from engine import (
    ConfigurationError,
    ExecutionFailed,
    Outcome,
    RetryPolicy,
    Transaction,
    Workflow,
    activity,
    transaction,
)
from engine.testing import TestCluster
from tests.eventually import eventually
from tests.workflow.conftest import World

SOON = RetryPolicy(attempts=3, initial=timedelta(milliseconds=1), jitter=0)
NEVER = RetryPolicy(attempts=1)
LONG = timedelta(minutes=5)


class Crawl(Workflow[str, str]):
    """Crawls five pages and, on its first attempt, stops at the third, as ``request`` says how."""

    def __init__(self) -> None:
        self.pages: list[int] = []
        self.found: list[object] = []
        self.release = threading.Event()

    async def execute(self, request: str) -> str:
        return await (self.in_thread(request) if "thread" in request else self.in_task(request))

    @activity(retry=SOON, heartbeat_timeout=LONG)
    async def in_task(self, how: str) -> str:
        for page in self.remaining():
            self.heartbeat({"page": page})
            if page == 3 and len(self.found) == 1:
                if how == "raise":
                    raise ConnectionError("503")
                await asyncio.Event().wait()
        return str(self.heartbeat_details)

    @activity(retry=SOON, heartbeat_timeout=LONG)
    def in_thread(self, how: str) -> str:
        for page in self.remaining():
            self.heartbeat({"page": page})
            if page == 3 and len(self.found) == 1:
                if "raise" in how:
                    raise ConnectionError("503")
                self.release.wait()
                self.heartbeat()  # raises
                self.pages.append(1000)
        return str(self.heartbeat_details)

    def remaining(self) -> range:
        details: Any = self.heartbeat_details
        self.found.append(details)
        rest = range(1 if details is None else details["page"] + 1, 6)
        self.pages.extend(rest)
        return rest


async def stored(cluster: TestCluster, execution: Any) -> list[bytes | None]:
    await execution.describe()
    storage = cluster.client._node.storage
    return [each.details for each in await storage.heartbeats([execution.request_id])]


@pytest.mark.parametrize("how", ["raise", "raise in a thread"])
async def test_what_an_attempt_reported_last_is_handed_to_the_next(world: World, how: str) -> None:
    crawl = Crawl()
    async with world.cluster(crawl) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Crawl, how)
        assert await world.result(cluster, execution) == "{'page': 5}"
        assert crawl.found == [None, {"page": 3}]

        async def removed() -> bool:
            return await stored(cluster, execution) == []

        await world.until(cluster, removed)


@pytest.mark.parametrize("how", ["wait", "wait in a thread"])
async def test_a_crash_loses_a_second_of_heartbeats_at_most(world: World, how: str) -> None:
    crawl = Crawl()
    async with world.cluster(crawl) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Crawl, how)

        async def durable() -> bool:
            return await stored(cluster, execution) == [b'{"page":3}']

        await world.until(cluster, durable)
        assert "heartbeat of in_t" in (await execution.describe()).why
        await cluster.crash()
        crawl.release.set()
        assert await world.result(cluster, execution) == "{'page': 5}"
        assert crawl.found == [None, {"page": 3}]
    assert 1000 not in crawl.pages


class Quiet(Workflow[str, str]):
    """Says nothing on its first attempt, or in time."""

    def __init__(self) -> None:
        self.turn = asyncio.Event()
        self.release = threading.Event()
        self.ends: list[str] = []

    async def execute(self, request: str) -> str:
        return await (self.in_thread() if "thread" in request else self.in_task(request))

    @activity(retry=SOON, heartbeat_timeout=timedelta(milliseconds=400))
    async def in_task(self, how: str) -> str:
        if how == "beat":
            for _ in range(10):
                await self.turn.wait()
                self.turn.clear()
                self.heartbeat()
        elif self.attempt == 1:
            await asyncio.Event().wait()
        return f"attempt {self.attempt}"

    @activity(retry=SOON, heartbeat_timeout=timedelta(milliseconds=400))
    def in_thread(self) -> str:
        if self.attempt == 1:
            self.release.wait()
            self.ends.append(f"cancelled: {self.cancelled}")
            try:
                self.heartbeat("too late")
            except asyncio.CancelledError:
                self.ends.append("told")
                raise
        return f"attempt {self.attempt}"


@pytest.mark.parametrize("how", ["task", "thread"])
async def test_an_attempt_without_a_heartbeat_has_timed_out(world: World, how: str) -> None:
    quiet = Quiet()
    async with world.cluster(quiet) as cluster, asyncio.timeout(40):
        execution = await cluster.client.start(Quiet, how)
        assert await world.result(cluster, execution) == "attempt 2"
        first, _ = await execution.history()
        quiet.release.set()
        if how == "thread":
            await eventually(lambda: quiet.ends == ["cancelled: True", "told"])
    assert (first.outcome, first.attempt) == (Outcome.TIMED_OUT, 1)
    assert "no heartbeat within 0.4 s" in str(first.payload)


async def test_heartbeats_keep_an_attempt_alive() -> None:
    quiet = Quiet()
    async with TestCluster(quiet) as cluster:
        execution = await cluster.client.start(Quiet, "beat")
        for _ in range(10):
            await cluster.advance(timedelta(milliseconds=300))
            quiet.turn.set()
            await cluster.settle()
        assert await execution.join(timedelta(seconds=5)) == "attempt 1"


class Fast(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        return await self.count(request)

    @activity(heartbeat_timeout=LONG)
    def count(self, to: int) -> int:
        for n in range(to):
            self.heartbeat(n)
        return to


async def test_heartbeats_are_stored_once_a_second_at_most(monkeypatch: Any) -> None:
    async with TestCluster(Fast()) as cluster:
        assert cluster.database is not None
        table = cluster.database.rows.heartbeats
        written: list[object] = []
        write = table.write
        monkeypatch.setattr(table, "write", lambda rows: (written.extend(rows), write(rows)))
        assert await cluster.client.execute(Fast, 20_000) == 20_000
    assert len(written) <= 4


class Wrong(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        match request:
            case "no timeout":
                await self.without_timeout()
            case "no JSON":
                await self.without_json()
            case _:
                await self.in_transaction()
        return "never"

    @activity(retry=NEVER)
    async def without_timeout(self) -> None:
        self.heartbeat()  # asks whether it is to end, no more
        self.heartbeat({"page": 1})

    @activity(retry=NEVER, heartbeat_timeout=LONG)
    def without_json(self) -> None:
        self.heartbeat(object())

    @transaction(retry=NEVER)
    async def in_transaction(self, tx: Transaction) -> None:
        assert not self.cancelled
        self.heartbeat()


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("no timeout", "give the step a heartbeat_timeout"),
        ("no JSON", "a heartbeat's details cannot be encoded"),
        ("transaction", r"self.heartbeat\(\) is for activities"),
    ],
)
async def test_a_heartbeat_that_is_of_no_use_is_an_error(how: str, why: str) -> None:
    async with TestCluster(Wrong()) as cluster:
        with pytest.raises(ExecutionFailed, match=why):
            await cluster.client.execute(Wrong, how)


def test_a_heartbeat_timeout_of_nothing_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="heartbeat_timeout that is not above zero"):

        @activity(heartbeat_timeout=timedelta(0))
        async def step(self: Any) -> None: ...
