"""What the consumers of a process say to stored streams: chunks were taken, or no more will be.

From ``stream_reader`` and ``sharding``; batched as it comes, on to the storage and, after the
commit, to the producer: directly if it is in this process, else by the doorbell.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, Self

from engine.core.envelope import AckChunk, Interrupt
from engine.core.errors import StorageUnavailable
from engine.core.ids import ShardId, Snowflake
from engine.core.retry import again_in
from engine.storage.protocol import Storage

log: logging.Logger = logging.getLogger(__name__)


class Producers(Protocol):
    """The streams that are produced in this process."""

    def __contains__(self, request_id: Snowflake, /) -> bool: ...
    def acknowledged(self, request_id: Snowflake, sequence: int, /) -> bool: ...


class Acknowledger:
    """Sends acknowledgements and interrupts; what comes while a batch is sent is the next one.

    ``registered`` is told of requests that this process has just been registered for as a waiter,
    with how far they are acknowledged, ``ring`` of the shards that have an interrupt to deliver.
    ``settled`` calls back when a request is no longer being stored.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        next_id: Callable[[], Awaitable[Snowflake]],
        registered: Callable[[Snowflake, int], None],
        ring: Callable[[Collection[ShardId]], None],
        settled: Callable[[Snowflake, Callable[[], None]], None],
    ) -> None:
        self.producers: Producers | None = None
        self._settled = settled
        self._storage = storage
        self._next_id = next_id
        self._registered = registered
        self._ring = ring
        self._acks: dict[Snowflake, _Ack] = {}
        self._interrupts: dict[Snowflake, Interrupt] = {}
        self._wake = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._group.create_task(self._run(), name="acknowledger")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Send what is left, once."""
        self._closing = True
        self._wake.set()
        await self._group.__aexit__(None, None, None)

    def acknowledge(
        self, request_id: Snowflake, shard: ShardId, sequence: int, *, more: bool = False
    ) -> None:
        """The chunks up to and with ``sequence`` were taken. With ``more`` this process is
        registered for what follows, unless it is produced here."""
        self._merge(request_id, _Ack(shard=shard, sequence=sequence, more=more))
        self._wake.set()

    async def acknowledged(self, request_id: Snowflake, shard: ShardId, sequence: int) -> None:
        """As ``acknowledge``; returns when it is durable."""
        if self._closing:
            raise StorageUnavailable("this client is closed; open a new one")
        durable: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._merge(request_id, _Ack(shard=shard, sequence=sequence, told=[durable]))
        self._wake.set()
        await durable

    def abandon(self, interrupt: Interrupt) -> None:
        """Nobody takes chunks of this stream any more."""
        # INVARIANT interrupt-behind: an interrupt finds what is stored only, so that one of a
        # request that is on its way, on a connection of its own, must not overtake it.
        self._settled(interrupt.request_id, partial(self._interrupt_soon, interrupt))

    def _interrupt_soon(self, interrupt: Interrupt) -> None:
        self._interrupts[interrupt.request_id] = interrupt
        self._wake.set()

    def _merge(self, request_id: Snowflake, ack: "_Ack") -> None:
        other = self._acks.setdefault(request_id, ack)
        if other is not ack:
            other.sequence = max(other.sequence, ack.sequence)
            other.more |= ack.more
            other.told += ack.told

    async def _run(self) -> None:
        failures = 0
        while True:
            acks, self._acks = self._acks, {}
            interrupts, self._interrupts = self._interrupts, {}
            if not (acks or interrupts):
                if self._closing:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            try:
                await self._send(acks)
                await self._interrupt(interrupts)
                failures = 0
            except Exception as error:  # whatever it was, it is sent again
                failures += 1
                if failures == 1:
                    log.warning("cannot acknowledge chunks, trying again", exc_info=error)
                if self._closing:
                    _refuse(acks)  # the producer finds out that it waits in vain
                    return
                for request_id, ack in acks.items():
                    self._merge(request_id, ack)
                self._interrupts = interrupts | self._interrupts
                await asyncio.sleep(again_in(failures))

    async def _send(self, acks: dict[Snowflake, "_Ack"]) -> None:
        """Make acknowledgements durable, then tell of them. Sending one again changes nothing."""
        here = self.producers or ()
        waiting = {id: ack for id, ack in acks.items() if ack.more and id not in here}
        others = {id: ack for id, ack in acks.items() if id not in waiting}
        taken: dict[Snowflake, int] = {}
        for some in (waiting, others):
            if some:
                chunks = [
                    AckChunk(request_id=id, id=await self._next_id(), sequence=ack.sequence)
                    for id, ack in some.items()
                ]
                taken |= await self._storage.acknowledge(chunks, wait=some is waiting)
        elsewhere: list[tuple[ShardId, Snowflake]] = []
        for request_id, ack in acks.items():
            producers = self.producers
            if producers is None or not producers.acknowledged(request_id, taken[request_id]):
                elsewhere.append((ack.shard, request_id))
            for durable in ack.told:
                if not durable.done():
                    durable.set_result(None)
        if elsewhere:
            self._storage.doorbell.ring_acks(elsewhere)
        for request_id in waiting:
            self._registered(request_id, taken[request_id])

    async def _interrupt(self, interrupts: dict[Snowflake, Interrupt]) -> None:
        if interrupts:
            await self._storage.interrupt(list(interrupts.values()))
            self._ring({each.address.shard for each in interrupts.values()})


@dataclass(slots=True, kw_only=True)
class _Ack:
    """``told`` end when it is durable."""

    shard: ShardId
    sequence: int
    more: bool = False
    told: list[asyncio.Future[None]] = field(default_factory=list[asyncio.Future[None]])


def _refuse(acks: dict[Snowflake, _Ack]) -> None:
    for ack in acks.values():
        for durable in ack.told:
            if not durable.done():
                durable.set_exception(StorageUnavailable("the client was closed meanwhile"))
