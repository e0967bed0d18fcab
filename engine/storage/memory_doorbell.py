"""The doorbell of the in-memory storage: hints between processes that share an event loop.

Rung by ``client`` and ``cluster`` after their commits; heard by the listeners of the process that
owns the shard or waits for the reply, never within the call that rings.
"""

import asyncio
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar
from uuid import UUID

from engine.core.ids import ShardId, Snowflake
from engine.storage.memory_database import Hearer, MemoryDatabase
from engine.storage.memory_lane import MemoryLane
from engine.storage.protocol import DoorbellListener

T = TypeVar("T")


class MemoryDoorbell:
    """One process's doorbell. Without ``notifications`` it neither rings nor hears anything."""

    def __init__(self, database: MemoryDatabase, *, identity: UUID, notifications: bool) -> None:
        self._database = database
        self._identity = identity
        self._notifications = notifications
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listeners: list[DoorbellListener] = []
        self._shards: set[ShardId] = set()
        self._replies: set[Snowflake] = set()
        self._acks: set[tuple[ShardId, Snowflake]] = set()
        self._channels: set[UUID] = set()
        self._topology = False
        self._sending = False

    @property
    def healthy(self) -> bool:
        return self._notifications and self._loop is not None and self._database.available

    def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._notifications:
            self._database.hearers[self] = None
            self.hear_restored()

    def close(self) -> None:
        self._database.forget(self)
        self._loop = None

    def watch(self, requests: Iterable[Snowflake]) -> None:
        if self._notifications and self._loop is not None:
            self._database.watch(requests, self)

    def listen(self, listener: DoorbellListener) -> None:
        self._listeners.append(listener)
        if self._loop is not None:
            self._loop.call_soon(self._begin, listener)

    # --- ringing --------------------------------------------------------------------------------

    def ring_shards(self, shards: Iterable[ShardId]) -> None:
        self._shards.update(shards)
        self._send_soon()

    def ring_replies(self, requests: Iterable[Snowflake]) -> None:
        self._replies.update(requests)
        self._send_soon()

    def ring_acks(self, acks: Iterable[tuple[ShardId, Snowflake]]) -> None:
        self._acks.update(acks)
        self._send_soon()

    def ring_post(self, channels: Iterable[UUID]) -> None:
        """Tell the processes that hear on these channels of their post."""
        self._channels.update(channels)
        self._send_soon()

    def ring_topology(self) -> None:
        self._topology = True
        self._send_soon()

    def _send_soon(self) -> None:
        if self._loop is not None and not self._sending:
            self._sending = True
            self._loop.call_soon(self._send)

    def _send(self) -> None:
        shards, self._shards = self._shards, set()
        replies, self._replies = self._replies, set()
        acks, self._acks = self._acks, set()
        channels, self._channels = self._channels, set()
        topology, self._topology = self._topology, False
        self._sending = False
        if not self.healthy:
            return
        for hearer, rung in self._owners((shard, shard) for shard in sorted(shards)).items():
            hearer.hear_shards(rung)
        for hearer, ended in self._database.waiters(replies).items():
            hearer.hear_replies(ended)
        for hearer, acked in self._owners(sorted(acks)).items():
            hearer.hear_acks(acked)
        for hearer in list(self._database.hearers):
            hearer.hear_post(channels)
            if topology:
                hearer.hear_topology()

    def _owners(self, items: Iterable[tuple[ShardId, T]]) -> Mapping[Hearer, list[T]]:
        """What concerns each owner that holds a shard now."""
        owned: defaultdict[Hearer, list[T]] = defaultdict(list)
        for id, item in items:
            shard = self._database.shards.get(id)
            if shard is not None and isinstance(shard.holder, MemoryLane):
                owned[shard.holder.doorbell].append(item)
        return owned

    # --- hearing --------------------------------------------------------------------------------

    def hear_shards(self, shards: Sequence[ShardId]) -> None:
        if self.healthy:
            for listener in self._listeners:
                listener.shards_rung(shards)

    def hear_replies(self, requests: Sequence[Snowflake]) -> None:
        if self.healthy:
            for listener in self._listeners:
                listener.replies_rung(requests)

    def hear_acks(self, requests: Sequence[Snowflake]) -> None:
        if self.healthy:
            for listener in self._listeners:
                listener.acks_rung(requests)

    def hear_post(self, channels: Collection[UUID]) -> None:
        if self.healthy and self._identity in channels:
            for listener in self._listeners:
                listener.post_rung()

    def hear_topology(self) -> None:
        if self.healthy:
            for listener in self._listeners:
                listener.topology_rung()

    def hear_restored(self) -> None:
        """Told by the database, from wherever it was broken: pass it on in a turn of its own."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon(self._restored)

    def _begin(self, listener: DoorbellListener) -> None:
        if self.healthy:
            listener.doorbell_restored()

    def _restored(self) -> None:
        if self.healthy:
            for listener in self._listeners:
                listener.doorbell_restored()
