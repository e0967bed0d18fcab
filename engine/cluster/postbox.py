"""Volatile messages on their way out of a process, batched as they come.

From ``cluster.volatile`` (requests) and ``cluster.reception`` (replies); on to ``Storage.post``.
One statement is in flight at most; what is put in meanwhile is the next batch.
"""

import asyncio
import logging
import random
from bisect import insort
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from enum import Enum
from itertools import count
from typing import Self, assert_never
from uuid import UUID

from engine.core.errors import NoRunner, StorageUnavailable
from engine.core.ids import ShardId
from engine.core.retry import again_in
from engine.storage.protocol import Post, Posted, Storage

log: logging.Logger = logging.getLogger(__name__)
_BATCH = 500
_BYTES = 1 << 24
_RETRY = (0.02, 0.1)
_BACKOFF = (0.05, 1.0)
_EPOCHS = 4


class Outgoing:
    """One message. ``order`` and ``epoch`` are the postbox's: the place among all that this process
    sends, and the epoch of its shard that it was sent to. Messages with one ``slot`` are not to
    overtake each other.

    ``patience`` is until when (by the loop's clock) it may wait for its shard to have an owner;
    without it, it is thrown away. ``again``: it may arrive twice, so that it is sent again when
    nobody knows whether it was sent.
    """

    __slots__ = ("again", "epoch", "order", "patience", "slot", "to", "tries")

    def __init__(
        self, to: ShardId | UUID, *, again: bool = False, patience: float | None = None
    ) -> None:
        self.to: ShardId | UUID = to
        self.slot: Hashable = to
        self.again: bool = again
        self.patience: float | None = patience
        self.order: int = 0
        self.epoch: int | None = None
        self.tries: int = 0

    @property
    def wanted(self) -> bool:
        """Whether it is still to be sent."""
        return True

    def hand_over(self) -> "Whereabouts":
        """Give it to its receiver if that is in this process."""
        return Whereabouts.ELSEWHERE

    def post(self) -> Post:
        raise NotImplementedError

    def sent(self, posted: Posted) -> None:
        """It is in its receiver's hands, or will be."""

    def failed(self, error: Exception) -> None:
        """It was not sent, or nobody knows."""


class Whereabouts(Enum):
    """Where the receiver of a message is."""

    HERE = "here"
    """In this process, and it has the message."""
    SOON = "soon"
    """In this process, which cannot take it now."""
    ELSEWHERE = "elsewhere"


class Postbox:
    """Sends in the order in which messages were put in.

    What is for a shard without an owner is held, with all that follows for that shard, and tried
    again until its patience ends.
    """

    def __init__(self, *, storage: Storage) -> None:
        self._storage = storage
        self._queue: deque[Outgoing] = deque()
        self._held: dict[ShardId, _Held] = {}
        self._under_way: Counter[ShardId] = Counter()
        self._reached: dict[Hashable, list[tuple[int, int]]] = {}
        self._orders = count(1)
        self._failures = 0
        self._wake = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._group.create_task(self._run(), name="postbox")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Send what can be sent at once."""
        self._closing = True
        self._wake.set()
        await self._group.__aexit__(None, None, None)

    def put(self, message: Outgoing) -> None:
        if self._closing:
            raise StorageUnavailable("this client is closed; open a new one")
        message.order = next(self._orders)
        self._count(message)
        self._queue.append(message)
        self._wake.set()

    def give_back(self, message: Outgoing) -> None:
        """An owner has refused a message unread: send it to the next one, before whatever was put
        in after it."""
        self._count(message)
        self._hold(message)
        self._wake.set()

    def busy(self, shard: ShardId) -> bool:
        """Whether something for the shard is still to be sent: then nothing may go past it."""
        return self._under_way[shard] > 0 if shard in self._under_way else False

    def passed(self, message: Outgoing, epoch: int) -> None:
        """A message was given to its shard's owner in this process, past the postbox."""
        message.order = message.order or next(self._orders)
        self._reach(message, epoch)

    # --- the loop ---------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._release()
            batch = self._batch()
            if batch:
                await self._send(batch)
            elif self._closing:
                break
            else:
                await self._idle()
        for held in self._held.values():
            for message in held.messages:
                self._fail(message, StorageUnavailable("this client was closed meanwhile"))

    async def _idle(self) -> None:
        loop = asyncio.get_running_loop()
        next_due = min((held.until for held in self._held.values()), default=None)
        self._wake.clear()
        try:
            async with asyncio.timeout_at(
                next_due if next_due is None else max(next_due, loop.time())
            ):
                await self._wake.wait()
        except TimeoutError:
            return

    def _batch(self) -> "list[_Item]":
        batch: list[_Item] = []
        size = 0
        while self._queue and len(batch) < _BATCH and size < _BYTES:
            message = self._queue.popleft()
            held = self._held.get(message.to) if isinstance(message.to, ShardId) else None
            if not message.wanted:
                self._fail(message, NotWanted("its sender was cancelled before it was sent"))
            elif held is not None:
                insort(held.messages, message, key=_order)
            elif self._overtaken(message):
                self._fail(message, Overtaken())
            elif not self._handed_over(message):
                post = message.post()
                size += len(post.body)
                batch.append((message, post))
        return batch

    def _handed_over(self, message: Outgoing) -> bool:
        """Whether it is done with, for now: its shard may have come to this process meanwhile."""
        try:
            where = message.hand_over()
        except Exception as error:  # noqa: BLE001 -- the sender gets it
            self._fail(message, error)
            return True
        match where:
            case Whereabouts.HERE:
                self._done(message)
            case Whereabouts.SOON:
                self._no_owner(message)
            case Whereabouts.ELSEWHERE:
                return False
            case _:
                assert_never(where)
        return True

    async def _send(self, batch: "Sequence[_Item]") -> None:
        try:
            posted = await self._storage.post([post for _, post in batch])
        except Exception as error:  # noqa: BLE001 -- the senders get it, the loop goes on
            await self._refused(batch, error)
            return
        self._failures = 0
        for (message, _), where in zip(batch, posted, strict=True):
            shard = message.to
            if isinstance(shard, ShardId) and where.runner is None:
                self._no_owner(message)
                continue
            if isinstance(shard, ShardId) and where.epoch is not None:
                self._reach(message, where.epoch)
            self._done(message)
            message.sent(where)

    async def _refused(self, batch: "Sequence[_Item]", error: Exception) -> None:
        """Nobody knows what was sent. A request must not arrive twice, so that it is not sent
        again; with replies that does no harm, and whoever waits for one must not wait for ever."""
        if not isinstance(error, StorageUnavailable):
            if len(batch) > 1:
                for each in batch:  # one that cannot be sent spoils no other
                    await self._send([each])
                return
            log.error("a volatile message cannot be sent", exc_info=error)
        again: list[Outgoing] = []
        for message, _ in batch:
            if message.again and isinstance(error, StorageUnavailable) and not self._closing:
                again.append(message)
            else:
                self._fail(message, error)
        if again:
            self._queue.extendleft(reversed(again))
            first, longest = _BACKOFF
            await asyncio.sleep(again_in(self._failures, first=first, longest=longest))
            self._failures += 1

    # --- shards without an owner ------------------------------------------------------------------

    def _no_owner(self, message: Outgoing) -> None:
        now, shard = asyncio.get_running_loop().time(), message.to
        assert isinstance(shard, ShardId)
        if message.patience is not None and now < message.patience and not self._closing:
            self._hold(message)
            return
        error = NoRunner(
            f"no runner owns shard {shard}, so that this volatile message reaches nobody: start a"
            f" runner of group {shard.group!r}, or make the handler persisted, which waits for one"
        )
        self._fail(message, error)

    def _hold(self, message: Outgoing) -> None:
        assert isinstance(message.to, ShardId)
        held = self._held.get(message.to)
        if held is None:
            first, longest = _RETRY
            delay = min(longest, first * 2 ** min(message.tries, 10)) * random.uniform(0.7, 1)
            held = self._held[message.to] = _Held(asyncio.get_running_loop().time() + delay)
        message.tries += 1
        insort(held.messages, message, key=_order)

    def _release(self) -> None:
        """Try again what has waited long enough; what follows it in the queue stays behind it."""
        now = asyncio.get_running_loop().time()
        for shard in [shard for shard, held in self._held.items() if held.until <= now]:
            self._queue.extend(self._held.pop(shard).messages)

    # --- order ------------------------------------------------------------------------------------

    def _overtaken(self, message: Outgoing) -> bool:
        """Whether a later message of its slot has reached a later owner of the shard.

        INVARIANT post-order: what an owner has given back is sent again only if nothing that was
        put in after it has gone to the next owner meanwhile; so one sender's messages to an entity
        arrive in order, or not at all.
        """
        sent_to = message.epoch
        return sent_to is not None and any(
            epoch > sent_to and order > message.order
            for epoch, order in self._reached.get(message.slot, ())
        )

    def _reach(self, message: Outgoing, epoch: int) -> None:
        """Note the latest message that was sent to each of the last owners."""
        message.epoch = epoch
        reached = self._reached.setdefault(message.slot, [])
        if reached and reached[-1][0] == epoch:
            reached[-1] = epoch, max(message.order, reached[-1][1])
        else:
            reached.append((epoch, message.order))
            del reached[:-_EPOCHS]

    # --- counting ---------------------------------------------------------------------------------

    def _count(self, message: Outgoing) -> None:
        if isinstance(message.to, ShardId):
            self._under_way[message.to] += 1

    def _done(self, message: Outgoing) -> None:
        if isinstance(message.to, ShardId):
            self._under_way[message.to] -= 1
            if self._under_way[message.to] <= 0:
                del self._under_way[message.to]

    def _fail(self, message: Outgoing, error: Exception) -> None:
        self._done(message)
        message.failed(error)


_Item = tuple[Outgoing, Post]


class NotWanted(Exception):
    """Nothing was sent."""


class Overtaken(Exception):
    """What was given back cannot be sent again, since later messages were sent elsewhere."""


class _Held:
    """The messages of a shard that wait for an owner, in order."""

    __slots__ = ("messages", "until")

    def __init__(self, until: float) -> None:
        self.until = until
        self.messages: list[Outgoing] = []


def _order(message: Outgoing) -> int:
    return message.order
