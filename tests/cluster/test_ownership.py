"""Shards go to whom the view says, and from one owner to the next without ever having two."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from engine.cluster.assignment import Candidate, assign
from engine.cluster.ownership import Ownership
from engine.cluster.view import View
from engine.core.clock import monotonic
from engine.core.errors import StorageUnavailable
from engine.core.ids import RunnerId, ShardId
from engine.storage.lock_holder import LockHolder
from engine.storage.protocol import RunnerRow
from tests.cluster.conftest import Cluster
from tests.cluster.peers import GROUP, Ledger, Pace, Peer, joined
from tests.eventually import eventually

SHARDS = 12
ONLY_RINGS = Pace(
    interval=timedelta(seconds=20), ttl=timedelta(seconds=100), poll=timedelta(seconds=60)
)
"""Heartbeats and polls so rare that what happens within a test was rung for."""


def shares(peers: Sequence[Peer], shards: int) -> dict[RunnerId, set[ShardId]]:
    every = [ShardId(GROUP, number) for number in range(1, shards + 1)]
    owners = assign(every, [Candidate(id=peer.id) for peer in peers])
    return {peer.id: {s for s, owner in owners.items() if owner == peer.id} for peer in peers}


async def settled(peers: Sequence[Peer], shards: int) -> None:
    """Each peer owns exactly its share."""
    expected = shares(peers, shards)
    await eventually(lambda: all(peer.owned == expected[peer.id] for peer in peers), timeout=20)


async def test_a_lone_runner_owns_every_shard(cluster: Cluster) -> None:
    async with joined(await cluster.process()) as peer:
        await settled([peer], cluster.shards)


async def test_join_leave_and_death_each_move_shards_to_their_new_shares(cluster: Cluster) -> None:
    ledger = Ledger()
    async with AsyncExitStack() as stack:
        peers: list[Peer] = []
        leaving = AsyncExitStack()
        for index in range(3):
            storage = await cluster.process()
            scope = leaving if index == 1 else stack
            peers.append(await scope.enter_async_context(joined(storage, ledger=ledger)))
            await settled(peers, cluster.shards)
        await leaving.aclose()
        del peers[1]
        await settled(peers, cluster.shards)
        dead = peers.pop()
        dead.die()
        await settled(peers, cluster.shards)
        assert len(ledger.owners) == cluster.shards


async def test_a_join_moves_only_what_the_new_runner_gets(cluster: Cluster) -> None:
    ledger = Ledger()
    async with joined(await cluster.process(), ledger=ledger) as first:
        await settled([first], cluster.shards)
        before = ledger.moves
        async with joined(await cluster.process(), ledger=ledger) as second:
            await settled([first, second], cluster.shards)
            assert ledger.moves - before == len(second.owned)


async def test_a_hand_over_waits_for_rings_and_not_for_polls(cluster: Cluster) -> None:
    ledger = Ledger()
    async with joined(await cluster.process(), ledger=ledger, pace=ONLY_RINGS) as first:
        await settled([first], cluster.shards)
        async with joined(await cluster.process(), ledger=ledger, pace=ONLY_RINGS) as second:
            began = monotonic()
            await settled([first, second], cluster.shards)
        await settled([first], cluster.shards)
        assert monotonic() - began < 15


async def test_without_notifications_shards_move_all_the_same(cluster: Cluster) -> None:
    ledger = Ledger()
    async with joined(await cluster.process(notifications=False), ledger=ledger) as first:
        async with joined(await cluster.process(notifications=False), ledger=ledger) as second:
            await settled([first, second], cluster.shards)
        await settled([first], cluster.shards)


@pytest.mark.parametrize("new_storage", ["memory"], indirect=True)
async def test_a_killed_runners_shards_are_owned_again_long_before_its_ttl(
    cluster: Cluster,
) -> None:
    patient = Pace(ttl=timedelta(seconds=100))
    async with (
        joined(await cluster.process(), pace=patient) as stays,
        joined(await cluster.process(), pace=patient) as dies,
    ):
        await settled([stays, dies], cluster.shards)
        dies.die()
        await eventually(lambda: len(stays.owned) == cluster.shards, timeout=20)


async def test_a_draining_runner_keeps_its_shards_until_it_leaves(cluster: Cluster) -> None:
    ledger = Ledger()
    async with joined(await cluster.process(), ledger=ledger) as stays:
        async with joined(await cluster.process(), ledger=ledger) as leaves:
            await settled([stays, leaves], cluster.shards)
            share = leaves.owned
            await leaves.membership.drain()
            await eventually(
                lambda: stays.membership.view and len(stays.membership.view.candidates(GROUP)) == 1
            )
            assert leaves.owned == share
            async with joined(await cluster.process(), ledger=ledger) as joins:
                await eventually(lambda: joins.owned)
                assert leaves.owned == share
        await settled([stays], cluster.shards)


async def test_a_runner_that_lost_its_lane_takes_its_shards_again(cluster: Cluster) -> None:
    async with joined(await cluster.process(), pace=ONLY_RINGS) as peer:
        await settled([peer], cluster.shards)
        lane = peer.host.lane
        assert lane is not None
        lane.terminate()
        await eventually(lambda: peer.host.lane is not lane)
        await settled([peer], cluster.shards)


async def test_an_idle_runner_asks_for_nothing(cluster: Cluster) -> None:
    async with joined(await cluster.process()) as peer:
        await settled([peer], cluster.shards)
        asked, seen = peer.host.acquisitions, len(peer.views)
        await eventually(lambda: len(peer.views) > seen + 5)
        assert peer.host.acquisitions == asked


# --- the loop alone, between views and a host that the test moves by hand -----------------------

ME, OTHER, THIRD = (RunnerId(UUID(int=number)) for number in (1, 2, 3))


class Script:
    """Views as the test publishes them."""

    def __init__(self) -> None:
        self.view: View | None = None
        self.accepting = True
        self.refreshed = 0
        self._watchers: list[Callable[[View], None]] = []

    def watch(self, watcher: Callable[[View], None]) -> None:
        self._watchers.append(watcher)

    def refresh(self) -> None:
        self.refreshed += 1

    def publish(self, *runners: RunnerId, silent: Collection[RunnerId] = ()) -> None:
        rows = tuple(RunnerRow(id=runner, groups=(GROUP,)) for runner in runners)
        now = datetime(2026, 1, 1, tzinfo=UTC)
        self.view = View(me=ME, now=now, runners=rows, sent=0, received=0, silent=frozenset(silent))
        for watcher in self._watchers:
            watcher(self.view)


class Locks:
    """A host whose locks others may hold."""

    def __init__(self) -> None:
        self.held: set[ShardId] = set()
        self.foreign: set[ShardId] = set()
        self.asked: list[float] = []
        self.released: list[frozenset[ShardId]] = []
        self.release_waits_for: asyncio.Event | None = None
        self.fail_releases = 0
        self.kept: set[ShardId] = set()
        self.past_keeping: set[ShardId] = set()

    def owned(self) -> frozenset[ShardId]:
        return frozenset(self.held)

    async def acquire(self, shards: Collection[ShardId]) -> frozenset[ShardId]:
        self.asked.append(monotonic())
        got = frozenset(shards) - self.foreign
        self.held |= got
        return got

    async def release(self, shards: Collection[ShardId]) -> None:
        if self.fail_releases:
            self.fail_releases -= 1
            raise StorageUnavailable("gone for a moment")
        if self.release_waits_for is not None:
            await self.release_waits_for.wait()
        self.held -= frozenset(shards) - self.kept
        self.released.append(frozenset(shards) - self.kept)

    def keep(self, shards: Collection[ShardId]) -> frozenset[ShardId]:
        self.kept |= frozenset(shards) - self.past_keeping
        return frozenset(shards) & self.past_keeping


class Rings:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def following(
    locks: Locks, views: Script, rings: Callable[[], None] = lambda: None, *, poll: float = 60
) -> Ownership:
    return Ownership(
        host=locks,
        views=views,
        groups=(GROUP,),
        shards_in=lambda _: SHARDS,
        ring_topology=rings,
        holders=nobody,
        poll=timedelta(seconds=poll),
    )


async def nobody() -> Sequence[LockHolder]:
    return ()


def every_shard() -> set[ShardId]:
    return {ShardId(GROUP, number) for number in range(1, SHARDS + 1)}


def my_share(*runners: RunnerId) -> set[ShardId]:
    owners = assign(every_shard(), [Candidate(id=runner) for runner in runners])
    return {shard for shard, owner in owners.items() if owner == ME}


async def turns(count: int = 20) -> None:
    """Let everything that is ready run."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_shard_is_released_after_two_equal_views_and_the_second_is_asked_for() -> None:
    locks, views, rings = Locks(), Script(), Rings()
    views.publish(ME)
    async with following(locks, views, rings):
        await eventually(lambda: locks.held == every_shard())
        refreshed = views.refreshed
        views.publish(ME, OTHER)
        await eventually(lambda: views.refreshed > refreshed)
        assert locks.held == every_shard()
        views.publish(ME, OTHER)
        await eventually(lambda: locks.held == my_share(ME, OTHER))
        await eventually(lambda: rings.count == 1)


async def test_runners_that_come_and_go_within_a_view_move_nothing() -> None:
    locks, views = Locks(), Script()
    views.publish(ME)
    async with following(locks, views):
        await eventually(lambda: locks.held == every_shard())
        for _ in range(3):
            views.publish(ME, OTHER)
            await turns()
            views.publish(ME, THIRD)
            await turns()
        views.publish(ME)
        await turns()
        assert locks.released == []


async def test_free_shards_of_a_silent_runner_are_taken_by_its_heirs_and_nothing_else_moves() -> (
    None
):
    locks, views = Locks(), Script()
    views.publish(ME, OTHER, THIRD)
    before, after = my_share(ME, OTHER, THIRD), my_share(ME, THIRD)
    async with following(locks, views):
        await eventually(lambda: locks.held == before)
        views.publish(ME, OTHER, THIRD, silent=[OTHER])
        await eventually(lambda: locks.held > before)
        inherited = locks.held - before
        assert inherited <= after
        views.publish(ME, OTHER, THIRD, silent=[OTHER])
        await turns()
        assert locks.released == []


async def test_shards_of_a_runner_that_was_silent_for_a_moment_go_back_to_it() -> None:
    locks, views = Locks(), Script()
    views.publish(ME, OTHER)
    async with following(locks, views):
        await eventually(lambda: locks.held == my_share(ME, OTHER))
        views.publish(ME, OTHER, silent=[OTHER])
        await eventually(lambda: locks.held == every_shard())
        views.publish(ME, OTHER)
        await turns()
        assert locks.held == every_shard()
        views.publish(ME, OTHER)
        await eventually(lambda: locks.held == my_share(ME, OTHER))


async def test_a_lock_that_stays_taken_is_asked_for_ever_more_rarely() -> None:
    locks, views = Locks(), Script()
    locks.foreign = every_shard()
    views.publish(ME)
    async with following(locks, views):
        await eventually(lambda: len(locks.asked) >= 5)
        gaps = [later - before for before, later in zip(locks.asked, locks.asked[1:], strict=False)]
        assert gaps[0] >= 0.03
        assert gaps[3] >= 0.3
        views.publish(ME)
        await turns()
        assert len(locks.asked) == 5


async def test_a_ring_asks_again_at_once() -> None:
    locks, views = Locks(), Script()
    locks.foreign = every_shard()
    views.publish(ME)
    async with following(locks, views) as ownership:
        await eventually(lambda: len(locks.asked) >= 4)
        locks.foreign.clear()
        refreshed = views.refreshed
        ownership.topology_rung()
        await turns()
        assert locks.held == every_shard()
        assert views.refreshed == refreshed + 1


async def test_shards_lost_with_their_lane_are_taken_again_on_a_poke() -> None:
    locks, views = Locks(), Script()
    views.publish(ME)
    async with following(locks, views) as ownership:
        await eventually(lambda: locks.held == every_shard())
        locks.held.clear()
        ownership.poke()
        await turns()
        assert locks.held == every_shard()


async def test_a_slow_release_does_not_hold_up_acquisitions() -> None:
    locks, views = Locks(), Script()
    locks.release_waits_for = asyncio.Event()
    views.publish(ME, OTHER)
    lost = next(iter(my_share(ME, OTHER)))
    extra = next(iter(every_shard() - my_share(ME, OTHER)))
    locks.held = {extra}
    async with following(locks, views) as ownership:
        views.publish(ME, OTHER)
        await eventually(lambda: locks.held == my_share(ME, OTHER) | {extra})
        locks.held.discard(lost)
        ownership.poke()
        await eventually(lambda: lost in locks.held)
        assert extra in locks.held
        locks.release_waits_for.set()
        await eventually(lambda: extra not in locks.held)


async def test_shards_that_are_wanted_again_are_kept_unless_it_is_too_late() -> None:
    locks, views = Locks(), Script()
    views.publish(ME)
    async with following(locks, views):
        await eventually(lambda: locks.held == every_shard())
        locks.release_waits_for = asyncio.Event()
        late, *kept = every_shard() - my_share(ME, OTHER)
        locks.past_keeping = {late}
        views.publish(ME, OTHER)
        views.publish(ME, OTHER)
        await turns()
        views.publish(ME)
        await eventually(lambda: locks.kept == {*kept})
        locks.release_waits_for.set()
        await eventually(lambda: locks.released == [frozenset({late})])
        await eventually(lambda: locks.held == every_shard())


async def test_a_shard_that_was_kept_can_be_released_while_others_still_are() -> None:
    locks, views = Locks(), Script()
    views.publish(ME)
    async with following(locks, views):
        await eventually(lambda: locks.held == every_shard())
        locks.release_waits_for = slow = asyncio.Event()
        late, *kept = every_shard() - my_share(ME, OTHER)
        locks.past_keeping = {late}
        for runners in ((ME, OTHER), (ME, OTHER), (ME,)):
            views.publish(*runners)
            await turns()
        assert locks.kept == {*kept}
        locks.kept = set()
        locks.release_waits_for = None
        views.publish(ME, OTHER)
        views.publish(ME, OTHER)
        await eventually(lambda: locks.held == my_share(ME, OTHER) | {late})
        assert locks.released == [frozenset(kept)]
        slow.set()


async def test_a_release_that_failed_is_tried_again() -> None:
    locks, views = Locks(), Script()
    views.publish(ME)
    async with following(locks, views):
        await eventually(lambda: locks.held == every_shard())
        locks.fail_releases = 2
        views.publish(ME, OTHER)
        views.publish(ME, OTHER)
        await eventually(lambda: locks.held == my_share(ME, OTHER))


async def test_a_release_that_failed_is_finished_although_the_shard_is_wanted_again() -> None:
    locks, views = Locks(), Script()
    views.publish(ME)
    async with following(locks, views):
        await eventually(lambda: locks.held == every_shard())
        given = every_shard() - my_share(ME, OTHER)
        locks.fail_releases = 1
        views.publish(ME, OTHER)
        views.publish(ME, OTHER)
        await eventually(lambda: not locks.fail_releases)
        views.publish(ME)
        views.publish(ME)
        await eventually(lambda: locks.released == [frozenset(given)])
        await eventually(lambda: locks.held == every_shard())


async def test_a_release_that_failed_is_not_finished_once_the_shard_was_taken_anew() -> None:
    locks, views = Locks(), Script()
    views.publish(ME)
    async with following(locks, views) as ownership:
        await eventually(lambda: locks.held == every_shard())
        given = every_shard() - my_share(ME, OTHER)
        locks.fail_releases = 1
        views.publish(ME, OTHER)
        views.publish(ME, OTHER)
        await eventually(lambda: not locks.fail_releases)
        locks.held -= given
        views.publish(ME)
        views.publish(ME)
        await eventually(lambda: locks.held == every_shard())
        for _ in range(5):
            await asyncio.sleep(0.05)
            ownership.poke()
        assert locks.released == []


async def test_nothing_moves_while_the_runner_does_not_accept() -> None:
    locks, views = Locks(), Script()
    views.publish(ME)
    async with following(locks, views):
        await eventually(lambda: locks.held == every_shard())
        views.accepting = False
        asked = len(locks.asked)
        views.publish(ME, OTHER)
        views.publish(ME, OTHER)
        await turns()
        assert locks.held == every_shard()
        assert len(locks.asked) == asked


async def test_leaving_releases_all_and_rings() -> None:
    locks, views, rings = Locks(), Script(), Rings()
    views.publish(ME)
    async with following(locks, views, rings):
        await eventually(lambda: locks.held == every_shard())
    assert locks.held == set()
    assert rings.count == 1


async def test_an_error_of_the_host_does_not_end_the_loop() -> None:
    locks, views = Locks(), Script()
    failures = [StorageUnavailable("no database"), ValueError("a defect")]
    real: Callable[[Collection[ShardId]], Awaitable[frozenset[ShardId]]] = locks.acquire

    async def acquire(shards: Collection[ShardId]) -> frozenset[ShardId]:
        if failures:
            raise failures.pop()
        return await real(shards)

    locks.acquire = acquire  # type: ignore[method-assign]
    views.publish(ME)
    async with following(locks, views):
        await eventually(lambda: locks.held == every_shard())
