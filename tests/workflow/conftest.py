"""Where the behaviour of workflows is shown: in memory on virtual time, and on PostgreSQL."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from engine.cluster.delivery import Delivery
from engine.testing import TestCluster
from tests.eventually import eventually

_ASLEEP = """
select not exists (select from engine.inbox where (due_at <= clock_timestamp()) is not false)
    and not exists (
        select from engine.executions where status = 1 or wake_at <= clock_timestamp()
    )
"""
_EARLIER = """
with waits as (update engine.inbox set due_at = due_at - $1::interval),
asked as (update engine.envelopes set deliver_at = deliver_at - $1::interval),
sleeps as (
    update engine.executions
    set created_at = created_at - $1::interval, started_at = started_at - $1::interval,
        wake_at = wake_at - $1::interval
)
update engine.journal
set at = at - $1::interval, started_at = started_at - $1::interval, due_at = due_at - $1::interval
"""


@dataclass(frozen=True, slots=True)
class World:
    """The settings of a ``TestCluster`` that say where its executions rest."""

    options: dict[str, Any]

    @property
    def virtual(self) -> bool:
        return "dsn" not in self.options

    def cluster(self, *prototypes: Any, **settings: Any) -> TestCluster:
        return TestCluster(*prototypes, **{**self.options, **settings})

    async def until(self, cluster: TestCluster, condition: Callable[[], Awaitable[object]]) -> Any:
        """Let what can happen happen until a condition holds; time moves on."""

        async def looked() -> object:
            if self.virtual:
                await cluster.advance(timedelta(milliseconds=100))
            return await condition()

        return await eventually(looked, timeout=30)

    async def later(self, cluster: TestCluster, duration: timedelta) -> None:
        """Let so much time pass. On PostgreSQL, once nothing is under way, all that is stored has
        happened so much earlier: executions that sleep cannot tell the difference."""
        if self.virtual:
            await cluster.advance(duration)
            return
        connection = await asyncpg.connect(self.options["dsn"])
        try:

            async def asleep() -> bool:
                return bool(await connection.fetchval(_ASLEEP))

            await eventually(asleep, timeout=30)
            await connection.execute(_EARLIER, duration)
            await eventually(asleep, timeout=30)
        finally:
            await connection.close()

    async def result(self, cluster: TestCluster, execution: Any) -> Any:
        """What an execution ends with, while time goes on."""

        async def ended() -> bool:
            return bool((await execution.describe()).status.finished)

        await self.until(cluster, ended)
        return await execution.join()


@pytest.fixture(params=["memory", "postgres", "memory, always replayed", "postgres, one shard"])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    options: dict[str, Any] = {}
    if request.param in ("postgres", "memory, always replayed"):
        # else a start of the runner's own client that comes alone begins from memory
        monkeypatch.setattr(Delivery, "taker", lambda *_: None)
    if "postgres" in request.param:
        options["dsn"] = request.getfixturevalue("dsn")
    if "replayed" in request.param:
        options["suspend_after"] = timedelta(0)
    if "one shard" in request.param:
        options["shards_per_group"] = 1
    return World(options)


@pytest.fixture(params=["memory", "postgres"])
def slow_world(request: pytest.FixtureRequest) -> World:
    """For what takes hours: where ``World.later`` lets them pass, and is noticed at once."""
    if request.param == "memory":
        return World({})
    soon = timedelta(milliseconds=50)
    dsn = request.getfixturevalue("dsn")
    return World({"dsn": dsn, "poll_interval": soon, "suspend_after": soon})
