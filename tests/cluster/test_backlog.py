"""Long lines: what is kept in memory of them, and what they cost those beside them."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest

from engine import Entity, rpc
from engine.cluster import residency
from engine.cluster.delivery import Delivery
from engine.storage.protocol import Sweep
from engine.testing import TestCluster
from tests.cluster.quick import Quick, delivery_of
from tests.eventually import eventually


class Line(Entity):
    """Takes nothing before it is opened."""

    mailbox_capacity = 4

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.taken: list[tuple[str, int]] = []

    @rpc
    async def stand(self, number: int) -> None:
        await self.open.wait()
        self.taken.append((self.entity_id, number))


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Sweep]]:
    """The sweeps meanwhile."""
    sweeps: list[Sweep] = []
    swept = Delivery.swept

    def note(self: Delivery, of: Any, sweep: Sweep) -> None:
        sweeps.append(sweep)
        swept(self, of, sweep)

    with monkeypatch.context() as patched:
        patched.setattr(Delivery, "swept", note)
        yield sweeps


async def test_few_of_many_waiting_entities_are_in_memory_and_each_has_its_turn_in_order(
    where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_WAITING", 5)
    line = Line()
    async with TestCluster(line, max_resident=2, shards_per_group=3, **where) as cluster:
        for number in range(3):
            async with asyncio.TaskGroup() as group:
                for id in range(40):
                    stand = cluster.client.entity(Line, f"e{id}").stand
                    group.create_task(cluster.client.tell(stand, number))
        await cluster.runner.sharding.poll_storage()
        owned = delivery_of(cluster).shards.values()
        assert sum(len(each.in_flight) for each in owned) <= 2 * 5 + 5
        assert sum(len(each.held) for each in owned) <= 2 + 5
        line.open.set()
        await eventually(lambda: len(line.taken) == 120, timeout=30)
        for id in range(40):
            assert [n for who, n in line.taken if who == f"e{id}"] == [0, 1, 2]


async def test_what_is_in_memory_goes_on_while_newcomers_wait(
    where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(residency, "_WAITING", 1)
    line = Line()
    async with TestCluster(line, Quick(), max_resident=1, **where) as cluster:
        first = cluster.client.entity(Line, "first")
        await cluster.client.tell(first.stand, 0)
        await eventually(lambda: delivery_of(cluster).active == 1)
        for id in range(5):
            await cluster.client.tell(cluster.client.entity(Line, f"e{id}").stand, 0)
        await cluster.runner.sharding.poll_storage()
        answer = asyncio.ensure_future(cluster.client.entity(Quick, "q").hi())
        line.open.set()
        assert await answer == 1
        await eventually(lambda: len(line.taken) == 6)


async def test_a_message_to_a_full_mailbox_rings_nobody(
    where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Line()
    quiet = {"poll_interval": timedelta(minutes=5), "poll_interval_degraded": timedelta(minutes=5)}
    async with TestCluster(line, shards_per_group=1, **quiet, **where) as cluster:
        stand = cluster.client.entity(Line, "a").stand
        for number in range(10):
            await cluster.client.tell(stand, number)
        await cluster.runner.sharding.poll_storage()
        with counted(monkeypatch) as sweeps:
            for number in range(10, 30):
                await cluster.client.tell(stand, number)
            await asyncio.sleep(0.1)
            assert sweeps == []
        line.open.set()
        await eventually(lambda: [n for _, n in line.taken] == [*range(30)])
