"""A runner's life: it joins, beats whatever its host does, is judged, is lost, and leaves."""

import asyncio
import logging
import threading
from collections.abc import Callable
from datetime import timedelta
from uuid import uuid4

import pytest

from engine.cluster.machine import MachineTenant
from engine.cluster.membership import Membership
from engine.core.clock import SystemClock, monotonic
from engine.core.errors import ConfigurationError, StorageUnavailable
from engine.core.ids import MachineLease, RunnerId, ShardId, SnowflakeGenerator
from engine.storage.protocol import LaneSession, Registry, RunnerRow, Storage
from tests.cluster.conftest import Cluster
from tests.cluster.peers import GROUP, Pace, Peer, joined
from tests.eventually import eventually

QUICK = Pace(ttl=timedelta(seconds=1))


def hog(until: Callable[[], object], at_most: float = 20) -> None:
    """Pure Python that gives nothing back to the event loop."""
    deadline = monotonic() + at_most
    while not until() and monotonic() < deadline:
        sum(range(1000))


def sees(peer: Peer) -> set[RunnerId]:
    view = peer.membership.view
    return set() if view is None else {row.id for row in view.runners}


class Stranger:
    """A runner that beats only when told to, with a session that holds a lock."""

    def __init__(self, id: RunnerId, registry: Registry, lane: LaneSession) -> None:
        self.id = id
        self.registry = registry
        self.lane = lane

    @classmethod
    async def arrive(cls, storage: Storage) -> "Stranger":
        id = RunnerId(uuid4())
        registry = await storage.open_registry(id)
        await registry.register(RunnerRow(id=id, groups=(GROUP,)))
        lane = await storage.open_lane(id, 0)
        assert await lane.acquire([ShardId(GROUP, 1)])
        return cls(id, registry, lane)

    async def gone(self) -> None:
        await self.registry.close()
        self.lane.terminate()


async def none_left(registry: Registry, runner: RunnerId) -> bool:
    return await registry.end_sessions(runner) == 0


async def declare_dead(storage: Storage, runner: RunnerId) -> None:
    """Bury a living runner, as a peer would that had not heard of it."""
    stranger = RunnerId(uuid4())
    registry = await storage.open_registry(stranger)
    await registry.register(RunnerRow(id=stranger, groups=()))
    await eventually(lambda: registry.bury(runner, by=stranger, ttl=timedelta(0)))
    await eventually(lambda: none_left(registry, runner))
    await registry.leave(stranger)
    await registry.close()


# --- joining and leaving ------------------------------------------------------------------------


async def test_a_runner_sees_itself_and_its_peers(cluster: Cluster) -> None:
    async with joined(await cluster.process(), host="one") as first:
        assert sees(first) == {first.id}
        assert first.membership.healthy
        async with joined(await cluster.process(), host="two") as second:
            await eventually(lambda: sees(first) == sees(second) == {first.id, second.id})
        await eventually(lambda: sees(first) == {first.id})


async def test_a_draining_runner_is_no_candidate_but_still_a_member(cluster: Cluster) -> None:
    async with (
        joined(await cluster.process()) as stays,
        joined(await cluster.process()) as drains,
    ):
        await eventually(lambda: drains.id in sees(stays))
        await drains.membership.drain()
        assert not drains.membership.accepting

        def only_candidate() -> bool:
            view = stays.membership.view
            return view is not None and [row.id for row in view.candidates(GROUP)] == [stays.id]

        await eventually(only_candidate)
        assert drains.id in sees(stays)


async def test_a_refresh_is_a_heartbeat_at_once(cluster: Cluster) -> None:
    rare = Pace(interval=timedelta(seconds=50), ttl=timedelta(seconds=300))
    async with joined(await cluster.process(), pace=rare) as peer:
        seen = len(peer.views)
        peer.membership.refresh()
        await eventually(lambda: len(peer.views) > seen, timeout=5)


async def test_a_settings_error_at_registration_is_raised_from_entering() -> None:
    async def refuse() -> Registry:
        raise ConfigurationError("a pooler stands where a direct connection is needed")

    membership = Membership(
        runner=RunnerRow(id=RunnerId(uuid4()), groups=()),
        open_registry=refuse,
        ring_topology=lambda: None,
    )
    with pytest.raises(ConfigurationError, match="pooler"):
        await membership.__aenter__()


async def test_giving_up_on_joining_leaves_no_thread_behind() -> None:
    runner = RunnerRow(id=RunnerId(uuid4()), groups=())

    async def refuse() -> Registry:
        raise StorageUnavailable("nobody answers")

    membership = Membership(runner=runner, open_registry=refuse, ring_topology=lambda: None)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await membership.__aenter__()
    assert str(runner.id) not in " ".join(thread.name for thread in threading.enumerate())


async def test_a_lease_that_is_renewed_while_the_runner_leaves_does_not_keep_it(
    cluster: Cluster,
) -> None:
    storage = await cluster.process()
    asked, answered = asyncio.Event(), asyncio.Event()

    async def lease(_: MachineLease | None) -> MachineLease:
        asked.set()
        await answered.wait()
        return await storage.lease_machine(None)

    clock = SystemClock()
    tenant = MachineTenant(generator=SnowflakeGenerator(now=clock.now), clock=clock, lease=lease)
    id = RunnerId(getattr(storage, "identity", None) or uuid4())
    membership = Membership(
        runner=RunnerRow(id=id, groups=()),
        open_registry=lambda: storage.open_registry(id),
        ring_topology=lambda: None,
        tenants=[tenant],
    )
    await membership.__aenter__()
    await asked.wait()
    leaving = asyncio.ensure_future(membership.__aexit__(None, None, None))
    await eventually(lambda: str(id) not in " ".join(t.name for t in threading.enumerate()))
    answered.set()

    async with asyncio.timeout(10):
        await leaving


# --- the dead -----------------------------------------------------------------------------------


async def test_a_silent_runner_is_buried_then_its_sessions_end_then_topology_rings(
    cluster: Cluster,
) -> None:
    silent = await Stranger.arrive(await cluster.process())
    async with joined(await cluster.process(), pace=QUICK) as peer:
        await eventually(lambda: silent.id in sees(peer))
        await eventually(lambda: silent.id not in sees(peer))
        await eventually(lambda: len(peer.owned) == cluster.shards)
        calls = peer.wire.calls
        buried = calls.index(("bury", True))
        ended = calls.index(("end_sessions", 0))
        assert buried < ended
        assert all(name != "end_sessions" for name, _ in calls[:buried])
        assert ("rung", None) in calls[ended:]
        assert silent.lane.closed
        await silent.gone()


async def test_a_takeover_whose_burier_died_is_finished_by_a_third(cluster: Cluster) -> None:
    storage = await cluster.process()
    silent = await Stranger.arrive(storage)
    burier = RunnerId(uuid4())
    registry = await storage.open_registry(burier)
    await registry.register(RunnerRow(id=burier, groups=()))
    await eventually(lambda: registry.bury(silent.id, by=burier, ttl=timedelta(0)))
    async with joined(await cluster.process()) as third:
        await eventually(lambda: len(third.owned) == cluster.shards)
        assert silent.lane.closed
        assert await registry.unburied() == []
    await registry.close()
    await silent.gone()


async def test_a_takeover_left_unfinished_while_one_lives_is_finished_too(cluster: Cluster) -> None:
    storage = await cluster.process()
    silent = await Stranger.arrive(storage)
    async with joined(await cluster.process()) as third:
        await eventually(lambda: silent.id in sees(third))
        burier = RunnerId(uuid4())
        registry = await storage.open_registry(burier)
        await registry.register(RunnerRow(id=burier, groups=()))
        await eventually(lambda: registry.bury(silent.id, by=burier, ttl=timedelta(0)))
        await registry.leave(burier)
        await registry.close()
        await eventually(lambda: len(third.owned) == cluster.shards)
        assert silent.lane.closed
    await silent.gone()


async def test_nobody_is_declared_dead_because_the_database_was_away_for_all(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        joined(await cluster.process(), pace=QUICK) as first,
        joined(await cluster.process(), pace=QUICK) as second,
    ):
        await eventually(lambda: len(sees(first) & sees(second)) == 2)
        first.wire.down = second.wire.down = True
        away = monotonic()
        await eventually(lambda: not first.membership.healthy and not second.membership.healthy)
        await eventually(lambda: monotonic() - away > 1.5)
        first.wire.down = second.wire.down = False
        await eventually(lambda: first.membership.healthy and second.membership.healthy)
        seen = len(first.views)
        await eventually(lambda: len(first.views) > seen + 8)
        assert sees(first) == {first.id, second.id}
        assert not first.membership.lost.is_set()
        assert not second.membership.lost.is_set()
    outages = [r for r in caplog.records if "does not reach the database" in r.getMessage()]
    assert len(outages) == 2


# --- being declared dead ------------------------------------------------------------------------


async def test_a_runner_declared_dead_drops_everything_at_once(cluster: Cluster) -> None:
    async with joined(await cluster.process()) as peer:
        await eventually(lambda: len(peer.owned) == cluster.shards)
        await declare_dead(await cluster.process(), peer.id)
        await asyncio.wait_for(peer.membership.lost.wait(), 10)
        assert peer.host.dropped
        assert peer.owned == frozenset()
        assert not peer.membership.healthy
        assert not peer.membership.accepting


async def test_a_runner_declared_dead_comes_back_under_a_new_id(cluster: Cluster) -> None:
    async with joined(await cluster.process()) as before:
        await eventually(lambda: len(before.owned) == cluster.shards)
        await declare_dead(await cluster.process(), before.id)
        await asyncio.wait_for(before.membership.lost.wait(), 10)
    async with joined(await cluster.process()) as after:
        await eventually(lambda: len(after.owned) == cluster.shards)
        assert sees(after) == {after.id}
        assert after.id != before.id


# --- a host that blocks -------------------------------------------------------------------------


async def test_a_blocked_loop_keeps_its_shards_and_is_reported_with_its_stack(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with (
        joined(await cluster.process()) as first,
        joined(await cluster.process()) as second,
    ):
        await eventually(lambda: len(first.owned | second.owned) == cluster.shards)
        await eventually(lambda: first.owned and second.owned)
        owned = first.owned, second.owned
        blocked_from = monotonic()
        hog(until=lambda: monotonic() - blocked_from > 3)
        await eventually(lambda: "answers again" in caplog.text)
        assert (first.owned, second.owned) == owned
        assert not first.membership.lost.is_set()
        report = next(r for r in caplog.records if "has not answered" in r.getMessage())
        assert "in hog" in report.getMessage()
        assert report.levelno == logging.WARNING


async def test_a_loop_blocked_for_too_long_loses_its_shards(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    short = Pace(ttl=timedelta(seconds=1), block_limit=timedelta(milliseconds=600))
    async with (
        joined(await cluster.process(), pace=short) as blocks,
        joined(await cluster.process(), pace=QUICK) as peer,
    ):
        await eventually(lambda: blocks.owned and peer.owned)
        hog(until=lambda: any("was declared dead" in record.msg for record in caplog.records))
        await asyncio.wait_for(blocks.membership.lost.wait(), 10)
        assert blocks.owned == frozenset()
        await eventually(lambda: len(peer.owned) == cluster.shards)
