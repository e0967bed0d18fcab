"""Long lines: what is kept in memory of them, and what they cost those beside them."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from engine import Entity, rpc
from engine.cluster import delivery as deliveries
from engine.cluster import residency
from engine.cluster import shard as shards
from engine.cluster.delivery import Delivery
from engine.cluster.shard import OwnedShard
from engine.core.envelope import EnvelopeRequest
from engine.core.ids import EntityAddress, RunnerId, ShardId, Snowflake
from engine.storage.lane import Lane
from engine.storage.protocol import InboxKind, InboxRow, Sweep
from engine.testing import TestCluster
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


class Quick(Entity):
    @rpc
    async def hi(self) -> int:
        return 1


def delivery_of(cluster: TestCluster) -> Delivery:
    assert cluster.runner._incarnation is not None
    return cluster.runner._incarnation.delivery


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


# --- the floor ------------------------------------------------------------------------------------


Range = tuple[int, int]
ALWAYS: Range = (1, 2)
"""One that goes on for ever."""
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(shards, "monotonic", clock)
    monkeypatch.setattr(shards, "_READ_ALL_EVERY", 60.0)
    monkeypatch.setattr(shards, "_RIPE_AFTER", 2.0)
    return clock


async def owned_shard() -> OwnedShard:
    async def no_session() -> Any:
        raise OSError

    lane = Lane(
        index=0,
        open_session=no_session,
        sink=None,  # type: ignore[arg-type]
        poll=lambda: timedelta(seconds=5),
        horizon=timedelta(0),
    )
    return OwnedShard(
        id=ShardId("default", 1),
        epoch=1,
        lane=lane,
        runner=RunnerId(uuid4()),
        settled_after=timedelta(seconds=15),
    )


def sweep(
    shard: OwnedShard,
    clock: Clock,
    *,
    at: float,
    last: int,
    read_to: int | None = None,
    running: Range = ALWAYS,
    thorough: bool = True,
) -> int:
    """Sweep all there is up to ``last``, or only rows up to ``read_to``; where the sweep began to
    look. ``running`` are the first transaction that writes now, and the next."""
    clock.now = 100 + at
    shard.begin_sweep(crowded=False, thorough=thorough)
    floor = shard.floor
    oldest, newest = running
    found = swept(more=read_to is not None, newest=newest)
    shard.end_sweep(found, last=last, read_to=read_to or 0, oldest=oldest)
    return floor


def swept(*, more: bool = False, newest: int = 0) -> Sweep:
    return Sweep(rows=[], due=[], next_due=None, more=more, now=NOW, newest=newest)


async def test_a_shard_is_not_read_from_the_beginning_once_all_that_wrote_has_ended(
    clock: Clock,
) -> None:
    shard = await owned_shard()
    assert sweep(shard, clock, at=0, last=1000, running=(5, 9)) == 0
    assert sweep(shard, clock, at=3, last=1100, running=(8, 12)) == 0
    assert sweep(shard, clock, at=4, last=1200, running=(9, 12)) == 0
    assert sweep(shard, clock, at=5, last=0, running=(12, 12)) == 1000
    assert sweep(shard, clock, at=7, last=1300, running=(13, 14)) == 1000
    assert sweep(shard, clock, at=8, last=0, running=(13, 14)) == 1200


async def test_what_was_delivered_from_memory_before_a_sweep_is_not_read_again_either(
    clock: Clock,
) -> None:
    shard = await owned_shard()
    shard.handed(1000)
    assert sweep(shard, clock, at=0, last=0, running=(9, 9)) == 0
    clock.now = 103
    shard.begin_sweep(crowded=False, thorough=True)
    shard.handed(1100)
    shard.end_sweep(swept(newest=12), last=0, read_to=0, oldest=12)
    assert sweep(shard, clock, at=6, last=0, running=(12, 12)) == 1000
    assert sweep(shard, clock, at=9, last=0, running=(12, 12)) == 1000
    assert sweep(shard, clock, at=10, last=0, running=(12, 12)) == 1100


async def test_a_backlog_is_not_looked_at_again_once_no_statement_can_add_to_it(
    clock: Clock,
) -> None:
    shard = await owned_shard()
    shard.hold(1)
    assert sweep(shard, clock, at=0, last=1000) == 0
    assert sweep(shard, clock, at=10, last=1100) == 0
    assert sweep(shard, clock, at=16, last=1200) == 0
    assert sweep(shard, clock, at=17, last=1300) == 1000
    assert sweep(shard, clock, at=32, last=1400) == 1000
    assert sweep(shard, clock, at=33, last=1400) == 1200


async def test_all_is_read_when_something_passed_over_can_be_delivered(clock: Clock) -> None:
    shard = await owned_shard()
    shard.hold(1)
    for at in (0, 16):
        sweep(shard, clock, at=at, last=1000)
    assert sweep(shard, clock, at=17, last=1000) == 1000
    shard.give_back(7, Snowflake(1))
    assert sweep(shard, clock, at=18, last=1000) == 0
    assert sweep(shard, clock, at=19, last=1000) == 0


async def test_what_is_given_back_during_a_sweep_is_not_below_its_floor(clock: Clock) -> None:
    shard = await owned_shard()
    shard.hold(1)
    sweep(shard, clock, at=0, last=1000)
    clock.now = 116
    shard.begin_sweep(crowded=False, thorough=True)
    shard.give_back(7, Snowflake(1))
    shard.end_sweep(swept(), last=1000, read_to=0, oldest=1)
    assert sweep(shard, clock, at=17, last=1000) == 0


async def test_a_sweep_that_left_rows_behind_settles_only_what_it_read(clock: Clock) -> None:
    shard = await owned_shard()
    assert sweep(shard, clock, at=0, last=5000, read_to=100, running=(9, 9)) == 0
    assert sweep(shard, clock, at=3, last=5000, read_to=99, running=(9, 9)) == 0  # not past those
    assert sweep(shard, clock, at=4, last=5000, read_to=0, running=(9, 9)) == 0  # none of its rows
    assert sweep(shard, clock, at=5, last=5000, read_to=200, running=(9, 9)) == 0
    assert sweep(shard, clock, at=6, last=0, read_to=0, running=(9, 9)) == 100
    assert sweep(shard, clock, at=8, last=5000, read_to=300, running=(9, 9)) == 100
    assert sweep(shard, clock, at=9, last=5000, read_to=301, running=(9, 9)) == 200


async def test_reading_all_from_the_beginning_takes_no_floor_away(clock: Clock) -> None:
    shard = await owned_shard()
    for at in (0, 3, 6):
        sweep(shard, clock, at=at, last=1000, running=(9, 9))
    assert sweep(shard, clock, at=70, last=1000, read_to=10, running=(9, 9)) == 0
    assert sweep(shard, clock, at=73, last=1000, read_to=20, running=(9, 9)) == 1000


async def test_all_is_read_now_and_then_all_the_same(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_READ_ALL_EVERY", 20.0)
    shard = await owned_shard()
    shard.hold(1)
    for at in (0, 16):
        sweep(shard, clock, at=at, last=1000)
    assert sweep(shard, clock, at=17, last=1000) == 1000
    assert sweep(shard, clock, at=36, last=1000) == 1000
    assert sweep(shard, clock, at=37, last=1000) == 0
    assert sweep(shard, clock, at=38, last=1000) == 1000


async def test_without_time_to_read_all_it_is_put_off_for_a_minute_at_most(clock: Clock) -> None:
    shard = await owned_shard()
    shard.hold(1)
    for at in (0, 16):
        sweep(shard, clock, at=at, last=1000)
    assert sweep(shard, clock, at=77, last=1000, thorough=False) == 1000
    assert sweep(shard, clock, at=135, last=1000, thorough=False) == 1000
    assert sweep(shard, clock, at=137, last=1000, thorough=False) == 0
    assert sweep(shard, clock, at=138, last=1000) == 1000


async def test_a_lane_reads_all_in_a_fortieth_of_its_time(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "monotonic", clock)
    async with TestCluster(Quick(), shards_per_group=2, lanes=1) as cluster:
        delivery = delivery_of(cluster)
        for shard in delivery.shards.values():
            shard.read_again()
            for at in (0, 16):
                sweep(shard, clock, at=at, last=1000)
        one, other = delivery.shards

        def floor(id: ShardId, *, at: float, takes: float = 0.0) -> Sequence[int]:
            clock.now = 100 + at
            delivery.held([id])
            floors = delivery.floors([id])
            clock.now += takes
            delivery.swept([id], swept())
            return floors

        assert floor(one, at=77, takes=1) == [0]
        assert floor(other, at=78) == [1000]
        assert floor(other, at=117) == [1000]
        assert floor(other, at=119) == [0]


async def test_what_a_shard_has_read_is_its_own_and_not_what_was_to_come_later(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliveries, "monotonic", clock)
    async with TestCluster(Quick(), shards_per_group=2, lanes=1) as cluster:
        delivery = delivery_of(cluster)
        one, other = delivery.shards
        # Behind the row of the one shard the sweep has left some; one of later is behind those.
        rows = [row_of(one, 10), row_of(other, 30), row_of(one, 50, deliver_at=NOW)]

        def floors(at: float) -> Sequence[int]:
            clock.now = 100 + at
            delivery.held([one, other])
            floors = delivery.floors([one, other])
            found = replace(swept(more=True, newest=5), rows=rows, last=60)
            delivery.swept([one, other], found)
            return floors

        for shard in delivery.shards.values():
            shard.read_again()
        assert [*map(floors, (100, 110, 111))] == [[0, 0], [0, 0], [10, 30]]


def row_of(shard: ShardId, seq: int, *, deliver_at: datetime | None = None) -> InboxRow:
    envelope = EnvelopeRequest(
        request_id=Snowflake(seq),
        address=EntityAddress(shard=shard, entity_type="Nobody", entity_id=str(seq)),
        tag="call",
        payload=b"",
        deliver_at=deliver_at,
    )
    return InboxRow(seq=seq, kind=InboxKind.REQUEST, shard=shard, envelope=envelope)
