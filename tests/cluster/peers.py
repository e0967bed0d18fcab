"""A runner reduced to what membership and ownership need: its heartbeat and the locks of one lane.

The locks are real ones of the storage; nothing is delivered. A ``Ledger`` shared by the peers of a
test is told of each shard after its lock was taken and before it is given back, and objects when
two peers own the same one.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

from engine.cluster.membership import Membership
from engine.cluster.ownership import Ownership
from engine.cluster.view import View
from engine.core.errors import StorageUnavailable
from engine.core.ids import RunnerId, ShardId, Snowflake
from engine.storage.protocol import (
    Beat,
    LaneSession,
    Registry,
    RunnerLoad,
    RunnerRow,
    Storage,
)

GROUP = "default"
SHARDS = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Times that suit a test on a busy machine."""

    interval: timedelta = timedelta(milliseconds=200)
    ttl: timedelta = timedelta(seconds=2)
    warn_after: timedelta = timedelta(milliseconds=300)
    block_limit: timedelta = timedelta(seconds=30)
    poll: timedelta = timedelta(seconds=1)


class Ledger:
    """Who owns which shard, as far as the owners know."""

    def __init__(self) -> None:
        self.owners: dict[ShardId, RunnerId] = {}
        self.moves = 0

    def take(self, shards: Collection[ShardId], runner: RunnerId) -> None:
        twice = {shard: self.owners[shard] for shard in shards if shard in self.owners}
        assert not twice, f"{runner} got shards that others own: {twice}"
        self.owners.update(dict.fromkeys(shards, runner))
        self.moves += len(shards)

    def give(self, shards: Collection[ShardId]) -> None:
        for shard in shards:
            self.owners.pop(shard, None)


class LaneHost:
    """A ``ShardHost`` over one lane session, which it opens again when it has ended."""

    def __init__(
        self,
        *,
        runner: RunnerId,
        open_lane: Callable[[], Awaitable[LaneSession]],
        ledger: Ledger,
    ) -> None:
        self._runner = runner
        self._open_lane = open_lane
        self._ledger = ledger
        self._turn = asyncio.Lock()
        self._held: set[ShardId] = set()
        self.lane: LaneSession | None = None
        self.dropped = False
        self.lost: Callable[[], None] = lambda: None
        self.changed: Callable[[], None] = lambda: None
        self.acquisitions = 0

    def owned(self) -> frozenset[ShardId]:
        return frozenset(self._held)

    async def acquire(self, shards: Collection[ShardId]) -> frozenset[ShardId]:
        async with self._turn:
            if self.dropped:
                return frozenset()
            lane = self.lane
            if lane is None or lane.closed:
                lane = self.lane = await self._open_lane()
                lane.on_close(self._lane_closed)
            self.acquisitions += 1
            got = frozenset(await lane.acquire(sorted(shards)))
            if lane.closed:
                return frozenset()
            self._ledger.take(got, self._runner)
            self._held |= got
            self.changed()
            return got

    async def release(self, shards: Collection[ShardId]) -> None:
        async with self._turn:
            held = self._held & frozenset(shards)
            if held and self.lane is not None:
                self._ledger.give(held)
                self._held -= held
                await self.lane.release(sorted(held))
                self.changed()

    def keep(self, shards: Collection[ShardId]) -> frozenset[ShardId]:
        return frozenset(shards)  # a release is over at once

    def drop(self) -> None:
        """Declared dead: own nothing any more, at once."""
        self.dropped = True
        self._forget()
        if self.lane is not None:
            self.lane.terminate()

    async def close(self) -> None:
        self._forget()
        if self.lane is not None and not self.lane.closed:
            await self.lane.close()

    def _lane_closed(self) -> None:
        self._forget()
        self.lost()

    def _forget(self) -> None:
        self._ledger.give(self._held)
        self._held.clear()
        self.changed()


class Wire:
    """The way to the register, which a test can cut; it notes what came through and when."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self.down = False
        self.calls: list[tuple[str, object]] = []

    async def open(self, runner: RunnerId) -> Registry:
        self.check()
        return _Wired(self, await self._storage.open_registry(runner))

    def check(self) -> None:
        if self.down:
            raise StorageUnavailable("the test has cut the wire")


class _Wired:
    """A register at the end of a wire."""

    def __init__(self, wire: Wire, registry: Registry) -> None:
        self._wire = wire
        self._registry = registry

    async def register(self, runner: RunnerRow) -> None:
        self._wire.check()
        await self._registry.register(runner)

    async def beat(self, runner: RunnerId, load: RunnerLoad | None = None) -> Beat:
        self._wire.check()
        return await self._registry.beat(runner, load)

    async def drain(self, runner: RunnerId) -> None:
        self._wire.check()
        await self._registry.drain(runner)

    async def leave(self, runner: RunnerId) -> None:
        self._wire.check()
        await self._registry.leave(runner)

    async def bury(self, runner: RunnerId, *, by: RunnerId, ttl: timedelta) -> bool:
        self._wire.check()
        won = await self._registry.bury(runner, by=by, ttl=ttl)
        self._wire.calls.append(("bury", won))
        return won

    async def unburied(self) -> Sequence[RunnerId]:
        self._wire.check()
        return await self._registry.unburied()

    async def end_sessions(self, runner: RunnerId) -> int:
        self._wire.check()
        left = await self._registry.end_sessions(runner)
        self._wire.calls.append(("end_sessions", left))
        return left

    async def close(self) -> None:
        await self._registry.close()


@dataclass(slots=True, kw_only=True)
class Peer:
    """One incarnation of such a runner; also what it wants to hear of the doorbell."""

    membership: Membership
    ownership: Ownership
    host: LaneHost
    wire: Wire
    views: list[View] = field(default_factory=list[View])

    @property
    def id(self) -> RunnerId:
        return self.membership.id

    @property
    def owned(self) -> frozenset[ShardId]:
        return self.host.owned()

    def die(self) -> None:
        """Fall silent for good and lose every session, as a killed process does."""
        self.wire.down = True
        self.host.drop()

    def topology_rung(self) -> None:
        self.wire.calls.append(("rung", None))
        self.ownership.topology_rung()

    def doorbell_restored(self) -> None:
        self.ownership.topology_rung()

    def shards_rung(self, shards: Sequence[ShardId], *, old: bool = False) -> None: ...
    def replies_rung(self, requests: Sequence[Snowflake]) -> None: ...
    def acks_rung(self, requests: Sequence[Snowflake]) -> None: ...
    def post_rung(self) -> None: ...


@asynccontextmanager
async def joined(
    storage: Storage,
    *,
    ledger: Ledger | None = None,
    pace: Pace | None = None,
    **row: Any,
) -> AsyncIterator[Peer]:
    """A peer from its registration to its leave; its id is that of the storage's sessions."""
    pace = pace or Pace()
    id = RunnerId(getattr(storage, "identity", None) or uuid4())
    runner = RunnerRow(**{"id": id, "groups": (GROUP,), "pid": os.getpid()} | row)
    host = LaneHost(
        runner=runner.id,
        open_lane=lambda: storage.open_lane(runner.id, 0),
        ledger=ledger or Ledger(),
    )
    wire = Wire(storage)
    async with Membership(
        runner=runner,
        open_registry=lambda: wire.open(runner.id),
        ring_topology=storage.doorbell.ring_topology,
        declared_dead=host.drop,
        interval=pace.interval,
        ttl=pace.ttl,
        warn_after=pace.warn_after,
        block_limit=pace.block_limit,
    ) as membership:
        try:
            async with Ownership(
                host=host,
                views=membership,
                groups=runner.groups,
                shards_in=storage.shards_in,
                ring_topology=storage.doorbell.ring_topology,
                holders=storage.lock_holders,
                poll=pace.poll,
            ) as ownership:
                peer = Peer(membership=membership, ownership=ownership, host=host, wire=wire)
                host.lost = ownership.poke
                membership.watch(peer.views.append)
                storage.doorbell.listen(peer)
                yield peer
        finally:
            await host.close()
