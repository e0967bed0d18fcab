"""Workflows of one name in several versions, and with a change guarded by ``patched``."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from engine import Deferred, Status, Transaction, Workflow, activity, query, signal, transaction
from engine.testing import TestCluster
from tests.workflow.conftest import World

SOON = timedelta(milliseconds=50)


def serving(world: World, *prototypes: Any, **settings: Any) -> TestCluster:
    """A cluster whose executions leave memory soon."""
    return TestCluster(*prototypes, **{"suspend_after": SOON, **world.options, **settings})


def deployed(world: World, before: TestCluster, *prototypes: Any, **settings: Any) -> TestCluster:
    """Other code over the same database."""
    if before.database is not None:
        settings["database"] = before.database
    return serving(world, *prototypes, **settings)


async def waits(world: World, cluster: TestCluster, execution: Any) -> None:
    """Until it waits for somebody outside."""

    async def suspended() -> bool:
        return (await execution.describe()).status is Status.SUSPENDED

    await world.until(cluster, suspended)


class Ship(Workflow[str, list[str]]):
    """Waits in between."""

    go = Deferred(bool)

    async def execute(self, request: str) -> list[str]:
        first = await self.pack(request)
        await self.go.wait()
        return [first, await self.send(request)]

    @activity
    async def pack(self, what: str) -> str:
        return f"packed {what} in {self.version}"

    @activity
    async def send(self, what: str) -> str:
        return f"sent {what} in {self.version}"

    @query
    def number(self) -> int:
        return self.version


class ShipV2(Ship):
    """Packs otherwise: a journal of version 1 does not fit it."""

    name = "Ship"
    version = 2

    async def execute(self, request: str) -> list[str]:
        weight = await self.weigh(request)
        await self.go.wait()
        return [weight, await self.send(request)]

    @activity
    async def weigh(self, what: str) -> str:
        return f"weighed {what} in {self.version}"


class Watch(Workflow[int, list[int]]):
    """Goes on as new when it is told, until its request is zero."""

    on = Deferred(bool)
    go = Deferred(bool)

    async def execute(self, request: int) -> list[int]:
        seen = await self.note(self.version)
        if request:
            await self.on.wait()
            await self.continue_as_new(request - 1)
        await self.go.wait()
        return [seen, request]

    @activity
    async def note(self, version: int) -> int:
        return version


class WatchV2(Watch):
    """Begins with a transaction, which tells ``looked`` its execution."""

    name = "Watch"
    version = 2

    def __init__(self, looked: Callable[[str], Awaitable[object]] | None = None) -> None:
        self.looked = looked

    async def execute(self, request: int) -> list[int]:
        await self.mark()
        await self.go.wait()
        return [self.version, request]

    @transaction
    async def mark(self, tx: Transaction) -> None:
        if self.looked is not None:
            await self.looked(self.execution_id)


class Old(Workflow[str, list[str]]):
    """A loop that waits for a tick in each round, before a change and after it."""

    name = "Tick"

    def __init__(self) -> None:
        self.ticks = 0

    async def execute(self, request: str) -> list[str]:
        done: list[str] = []
        for n in range(3):
            done.append(await self.step(n))
            await self.wait_until(lambda past=n: self.ticks > past)
        return done

    @signal
    def tick(self) -> None:
        self.ticks += 1

    @activity
    async def step(self, n: int) -> str:
        return f"old {n}"

    @activity
    async def better(self, n: int) -> str:
        return f"new {n}"


class New(Old):
    """Asks in a loop, and in a task beside it."""

    name = "Tick"

    async def execute(self, request: str) -> list[str]:
        done: list[str] = []
        beside = asyncio.create_task(self.beside())
        for n in range(3):
            if self.patched("better"):
                done.append(await self.better(n))
            else:
                done.append(await self.step(n))
            await self.wait_until(lambda past=n: self.ticks > past)
        return [*done, await beside]

    async def beside(self) -> str:
        await self.wait_until(lambda: self.ticks == 2)
        return "new" if self.patched("better") else "old"

    @query
    def way(self) -> bool:
        return self.patched("better")


class NewOnly(New):
    """The old way is gone."""

    name = "Tick"

    async def execute(self, request: str) -> list[str]:
        self.deprecate_patch("better")
        done: list[str] = []
        beside = asyncio.create_task(self.beside())
        for n in range(3):
            done.append(await self.better(n))
            await self.wait_until(lambda past=n: self.ticks > past)
        return [*done, await beside]

    async def beside(self) -> str:
        await self.wait_until(lambda: self.ticks == 2)
        return "new"


class Retired(NewOnly):
    """Nothing tells of the change any more."""

    name = "Tick"

    async def execute(self, request: str) -> list[str]:
        done: list[str] = []
        beside = asyncio.create_task(self.beside())
        for n in range(3):
            done.append(await self.better(n))
            await self.wait_until(lambda past=n: self.ticks > past)
        return [*done, await beside]
