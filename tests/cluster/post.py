"""Entities with volatile handlers, and senders of this and of another process."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from engine import Client, Entity, EntityDefect, Runner, Uninterruptible, rpc
from engine.node import Node
from engine.testing import TestCluster


class Relay(Entity):
    """Says in ``log`` what its handlers do; those that wait do so until ``go`` is set."""

    def __init__(self) -> None:
        self.log: list[object] = []
        self.go = asyncio.Event()

    @rpc(persisted=False)
    async def echo(self, n: int) -> int:
        self.log.append(n)
        return n

    @rpc(persisted=False)
    async def fail(self) -> None:
        raise LookupError("nothing there")

    @rpc(persisted=False)
    async def explode(self) -> None:
        self.log.append("explodes")
        raise EntityDefect("out of order")

    @rpc(persisted=False)
    async def wait(self) -> str:
        self.log.append("begun")
        try:
            await self.go.wait()
        finally:
            self.log.append("ended")
        return "done"

    @rpc(persisted=False, uninterruptible=Uninterruptible.CLIENT)
    async def insist(self) -> str:
        self.log.append("begun")
        await self.go.wait()
        return "done"

    @rpc(persisted=False)
    async def items(self, count: int) -> AsyncIterator[int]:
        self.log.append("begun")
        try:
            for number in range(count):
                self.log.append(number)
                yield number
        finally:
            self.log.append("closed")

    @rpc(persisted=False)
    async def breaks(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number
        raise LookupError("no more")

    @rpc
    async def store(self, n: int) -> int:
        return n


class Wide(Relay):
    """Any number at once."""

    concurrency = 0


class Small(Relay):
    mailbox_capacity = 1


class Unknown(Relay):
    """No runner serves it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sender:
    """A client, and its process's place in the cluster."""

    client: Client
    node: Node


@asynccontextmanager
async def sender_here(cluster: TestCluster) -> AsyncGenerator[Sender]:
    """The client of the runner's own process."""
    yield Sender(client=cluster.client, node=cluster.client._node)


@asynccontextmanager
async def sender_elsewhere(cluster: TestCluster) -> AsyncGenerator[Sender]:
    """A client in what could be another process."""
    node = Node(cluster.settings, clock=cluster.clock, open_storage=cluster._open)
    async with node:
        yield Sender(client=Client(cluster.settings, node=node), node=node)


@asynccontextmanager
async def another_runner(cluster: TestCluster, *prototypes: Entity) -> AsyncGenerator[Runner]:
    """One more runner of the cluster, in what could be another process."""
    runner = Runner(cluster.settings, clock=cluster.clock, open_storage=cluster._open)
    async with runner.register(*(prototypes or cluster.prototypes)):
        yield runner
