"""How long an entity stays in memory, and what waiting for that costs."""

from datetime import timedelta

from engine import Entity, rpc
from engine.testing import TestCluster, VirtualClock


class Counts(Entity):
    max_idle = timedelta(minutes=1)

    def __init__(self) -> None:
        self.number = 0

    @rpc
    async def next(self) -> int:
        self.number += 1
        return self.number


async def test_an_entity_stays_until_it_was_idle_for_long_enough() -> None:
    async with TestCluster(Counts()) as cluster:
        entity = cluster.client.entity(Counts, "c")
        for number in range(1, 5):
            assert await entity.next() == number
            await cluster.advance(timedelta(seconds=50))
        await cluster.advance(timedelta(seconds=20))
        assert cluster.runner.sharding.active_entity_count() == 0
        assert await entity.next() == 1


async def test_a_busy_entity_has_one_alarm() -> None:
    async with TestCluster(Counts()) as cluster:
        assert isinstance(cluster.clock, VirtualClock)
        entity = cluster.client.entity(Counts, "c")
        await entity.next()
        before = len(cluster.clock._alarms)
        for _ in range(100):
            await entity.next()
        assert len(cluster.clock._alarms) <= before
