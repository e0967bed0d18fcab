"""Interrupts of requests that are in line: what they do to the others there, and to their order.

Messages and interrupts are written into the database quietly, so that one sweep reads them all.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from engine import (
    Entity,
    EntityAddress,
    EntityDefect,
    EntityId,
    EntityType,
    EnvelopeRequest,
    Interrupt,
    Interrupted,
    State,
    Success,
    Uninterruptible,
    rpc,
)
from engine.cluster.write import write
from engine.storage.protocol import SUSPECT, Commit, SaveRequest
from engine.testing import TestCluster
from tests.eventually import eventually

QUIET: dict[str, Any] = {
    "notifications": False,
    "poll_interval_degraded": timedelta(minutes=1),
    "shards_per_group": 1,
}


@pytest.fixture(params=["memory", "postgres"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    return QUIET | ({} if request.param == "memory" else {"dsn": request.getfixturevalue("dsn")})


class Door:
    """What a test and its handlers have in common."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.log: list[tuple[str, int]] = []
        self.seen: Counter[str] = Counter()

    def passed(self, id: str) -> list[int]:
        return [n for who, n in self.log if who == id]


class Narrow(Entity):
    """Number 0 waits at the door."""

    mailbox_capacity = 1

    def __init__(self, door: Door, *, keep: bool = False) -> None:
        self.door = door
        self.keep = keep

    @rpc
    async def work(self, n: int) -> int:
        self.keep_alive(self.keep)
        if n == 0:
            await self.door.open.wait()
        self.door.log.append((self.entity_id, n))
        return n

    @rpc(readonly=True)
    async def look(self, n: int) -> int:
        self.door.log.append((self.entity_id, n))
        return n

    @rpc
    async def fragile(self, n: int) -> int:
        self.door.seen["began"] += 1
        try:
            await self.door.open.wait()
        except asyncio.CancelledError:
            raise EntityDefect("nobody knows what it was doing") from None
        return n

    @rpc
    async def count(self, n: int) -> AsyncIterator[int]:
        self.door.seen["began"] += 1
        for number in range(n):
            yield number


class Two(Narrow):
    mailbox_capacity = 2


class Late(Narrow):
    """Not served from the beginning."""


class Sum(BaseModel):
    total: int = 0


class Ledger(Narrow):
    """Waits in its mailbox until its state has been read."""

    mailbox_capacity = 10
    state = State(Sum)

    @rpc
    async def work(self, n: int) -> int:
        self.state.total += n
        self.door.log.append((self.entity_id, n))
        return n


class Line:
    """Writes what comes for entities, and has it read."""

    def __init__(self, cluster: TestCluster) -> None:
        self.cluster = cluster
        incarnation = cluster.runner._incarnation
        assert incarnation is not None
        self.incarnation = incarnation
        self.delivery = incarnation.delivery
        self.storage = cluster.client._node.storage

    async def put(
        self, entity: type[Entity], id: str, n: int, tag: str = "work", **more: Any
    ) -> EnvelopeRequest:
        sharding = self.cluster.runner.sharding
        kind, entity_id = EntityType(entity.name), EntityId(id)
        envelope = EnvelopeRequest(
            request_id=sharding.snowflake().next(),
            address=EntityAddress(sharding.get_shard_id(kind, entity_id), kind, entity_id),
            tag=tag,
            payload=json.dumps({"n": n}).encode(),
            **more,
        )
        await self.storage.save([SaveRequest(envelope=envelope)])
        return envelope

    async def interrupt(self, envelope: EnvelopeRequest) -> None:
        interrupt = Interrupt(request_id=envelope.request_id, address=envelope.address)
        assert await self.storage.interrupt([interrupt]) == [True]

    async def read(self) -> None:
        await self.cluster.runner.sharding.poll_storage()

    async def until(self, condition: Callable[[], Any]) -> None:
        """Read until it is so. A minute passes at each look where time is virtual."""

        async def read_on() -> Any:
            await self.read()
            if self.cluster.database is not None:
                await self.cluster.advance(timedelta(minutes=1))
            return condition()

        await eventually(read_on)

    async def exit(self, envelope: EnvelopeRequest) -> Any:
        receiver = await self.cluster.runner.sharding.await_reply(envelope.request_id)
        async with asyncio.timeout(20):
            return await receiver


@asynccontextmanager
async def line(*entities: Entity, **settings: Any) -> AsyncGenerator[Line]:
    async with TestCluster(*entities, **settings) as cluster:
        inbox = Line(cluster)
        await inbox.read()  # as the lane does at first, so that it does not do so in the middle
        yield inbox


# --- mailboxes --------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [False, True])
async def test_a_mailbox_that_an_interrupt_has_emptied_takes_messages_again(
    where: dict[str, Any], keep: bool
) -> None:
    door = Door()
    async with line(Narrow(door, keep=keep), **where) as inbox:
        first, second = await inbox.put(Narrow, "a", 0), await inbox.put(Narrow, "a", 1)
        await inbox.read()
        await inbox.interrupt(second)
        await inbox.read()
        assert await inbox.exit(second) == Interrupted()
        door.open.set()
        assert await inbox.exit(first) == Success(b"0")
        third = await inbox.put(Narrow, "a", 2)
        await inbox.read()
        assert await inbox.exit(third) == Success(b"2")
        assert door.passed("a") == [0, 2]


async def test_a_message_that_ignores_interrupts_is_handled_though_it_waits_in_the_database(
    where: dict[str, Any],
) -> None:
    door = Door()
    async with line(Narrow(door), **where) as inbox:
        await inbox.put(Narrow, "a", 0)
        await inbox.put(Narrow, "a", 1)
        last = await inbox.put(Narrow, "a", 2, uninterruptible=Uninterruptible.CLIENT)
        await inbox.read()
        await inbox.interrupt(last)
        await inbox.read()
        door.open.set()
        await inbox.until(lambda: door.passed("a") == [0, 1, 2])


async def test_an_interrupted_handler_that_breaks_its_entity_has_ended(
    where: dict[str, Any],
) -> None:
    door = Door()
    async with line(Two(door), **where) as inbox:
        broken = await inbox.put(Two, "a", 1, "fragile")
        await inbox.read()
        await eventually(lambda: door.seen["began"])
        await inbox.put(Two, "a", 2)
        await inbox.interrupt(broken)
        await inbox.until(lambda: door.passed("a") == [2])
        assert await inbox.exit(broken) == Interrupted()
        assert door.seen["began"] == 1


async def test_an_interrupt_while_a_streams_position_is_read_ends_it_behind_its_elements(
    where: dict[str, Any],
) -> None:
    door = Door()
    async with line(Two(door), **where) as inbox:
        held = _Held(inbox.storage.streams)
        inbox.incarnation.streams._storage = _Storage(streams=held)  # type: ignore[assignment]
        stream = await inbox.put(Two, "a", 3, "count")
        await inbox.read()
        await eventually(lambda: held.waiting)
        await inbox.interrupt(stream)
        await inbox.read()
        held.go.set()
        assert await inbox.exit(stream) == Interrupted()
        after = await inbox.put(Two, "a", 1)
        await inbox.read()
        assert await inbox.exit(after) == Success(b"1")
        assert not door.seen


# --- order ------------------------------------------------------------------------------------


async def test_what_waits_behind_a_message_that_was_interrupted_keeps_its_order(
    where: dict[str, Any],
) -> None:
    door = Door()
    async with line(Two(door), max_resident=1, **where) as inbox:
        await inbox.put(Two, "other", 0)
        await inbox.read()
        first = await inbox.put(Two, "a", 10)
        await inbox.put(Two, "a", 1)
        await inbox.interrupt(first)
        await inbox.put(Two, "a", 2)
        await inbox.read()
        door.open.set()
        await inbox.until(lambda: len(door.passed("a")) == 2)
        assert door.passed("a") == [1, 2]


async def test_readers_behind_a_writer_that_was_interrupted_keep_their_order(
    where: dict[str, Any],
) -> None:
    door = Door()
    async with line(Two(door), **where) as inbox:
        await inbox.put(Two, "a", 0)
        writer = await inbox.put(Two, "a", 10)
        for n in (1, 2):
            await inbox.put(Two, "a", n, "look")
        await inbox.interrupt(writer)
        await inbox.put(Two, "a", 3, "look")
        await inbox.read()
        await inbox.until(lambda: len(door.passed("a")) == 3)
        assert door.passed("a") == [1, 2, 3]
        door.open.set()


async def test_an_interrupt_that_makes_place_for_another_entity_keeps_its_order(
    where: dict[str, Any],
) -> None:
    door = Door()
    async with line(Ledger(door), max_resident=1, **where) as inbox:
        other = await inbox.put(Ledger, "other", 1)
        for n in (1, 2):
            await inbox.put(Ledger, "a", n)
        await inbox.interrupt(other)
        await inbox.put(Ledger, "a", 3)
        await inbox.read()
        await inbox.until(lambda: len(door.passed("a")) == 3)
        assert door.passed("a") == [1, 2, 3]
        assert door.passed("other") == []


# --- suspects and types that nobody serves ------------------------------------------------------


async def test_a_suspect_that_is_interrupted_before_its_trial_is_not_handled(
    where: dict[str, Any],
) -> None:
    door = Door()
    async with line(Ledger(door), **where) as inbox:
        inbox.delivery.unhandled._streams = held = _Held(inbox.storage.streams)
        inbox.delivery.trials.ask(another := object(), 9, lambda: None)
        await inbox.read()
        suspect = await inbox.put(Ledger, "a", 1)
        (shard,) = inbox.delivery.shards.values()
        (row,) = await _rows(inbox)
        for _ in range(SUSPECT):
            await write(inbox.delivery, shard, Commit(shard=shard.id, failed=[row]))
        await inbox.read()
        await inbox.put(Ledger, "a", 2)
        await inbox.interrupt(suspect)
        await inbox.read()
        inbox.delivery.trials.done(another)
        await eventually(lambda: door.passed("a") == [2])
        held.go.set()
        assert await inbox.exit(suspect) == Interrupted()
        assert door.passed("a") == [2]
        assert len(inbox.delivery.trials) == 0


async def test_what_waits_for_its_type_and_is_interrupted_is_not_handled(
    where: dict[str, Any],
) -> None:
    door = Door()
    async with line(Narrow(door), **where) as inbox:
        inbox.delivery.unhandled._streams = held = _Held(inbox.storage.streams)
        parked = await inbox.put(Late, "a", 1)
        await inbox.read()
        await inbox.interrupt(parked)
        await inbox.read()
        inbox.cluster.runner.register(Late(door))
        await inbox.put(Late, "a", 2)
        await inbox.until(lambda: door.passed("a") == [2])
        held.go.set()
        assert await inbox.exit(parked) == Interrupted()
        assert door.passed("a") == [2]


async def _rows(inbox: Line) -> list[int]:
    """The inbox rows that nobody has in hand."""
    (lane, *_) = inbox.delivery.lanes
    assert lane._session is not None
    swept = await lane._session.sweep(
        list(inbox.delivery.shards), in_flight=(), resident=(), limit=10, horizon=timedelta(0)
    )
    return [row.seq for row in swept.rows]


class _Held:
    """A call that is held up until the test says ``go``."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.call = call
        self.go = asyncio.Event()
        self.waiting = 0

    async def __call__(self, *args: Any) -> Any:
        self.waiting += 1
        await self.go.wait()
        return await self.call(*args)


class _Storage:
    def __init__(self, *, streams: Callable[..., Awaitable[Any]]) -> None:
        self.streams = streams
