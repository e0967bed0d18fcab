"""NOTIFY as a hint: two connections of their own, one that rings and one that listens.

From whoever has committed something others wait for; on to the ``DoorbellListener`` of each process
it concerns. A process hears on ``outlast_<its id>``, all of a schema on ``outlast_all_<schema>``.
Everything here may be lost: the poll finds what no doorbell told.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

import asyncpg

from engine.core.clock import monotonic
from engine.core.errors import ConfigurationError, StorageUnavailable
from engine.core.ids import ShardId, Snowflake
from engine.core.retry import again_in
from engine.storage.bell import ALL, Bell, parse_bell
from engine.storage.connect import OUR_PLANS, Connector
from engine.storage.groups import Groups, UnknownGroup
from engine.storage.outage import LOST
from engine.storage.protocol import DoorbellListener
from engine.storage.session import Session

log: logging.Logger = logging.getLogger(__name__)
T = TypeVar("T")

_BACKOFF = 0.1
_BACKOFF_LIMIT = 5.0
_SERVED = 1.0
_PING = timedelta(seconds=60)
_BATCH = 2000
_QUIET = 60.0
_RINGER = OUR_PLANS | {"synchronous_commit": "off", "lock_timeout": "100"}


def channel_of(identity: UUID) -> str:
    """Where one process hears."""
    return f"outlast_{identity.hex}"


class PostgresDoorbell:
    """A ``Doorbell``. Its connections open on first need and come back by themselves."""

    def __init__(
        self, *, connector: Connector, identity: UUID, groups: Groups, ping: timedelta = _PING
    ) -> None:
        self._connector = connector
        self._identity = identity
        self._groups = groups
        self._ping = ping
        self._everybody = f"outlast_all_{connector.queries.schema}"
        self._listener: DoorbellListener | None = None
        self._shards: set[ShardId] = set()
        self._replies: set[Snowflake] = set()
        self._acks: set[tuple[ShardId, Snowflake]] = set()
        self._topology = False
        self._wake = asyncio.Event()
        self._heard = asyncio.Event()
        self._tried = asyncio.Event()
        self._ringer: asyncio.Task[None] | None = None
        self._hearer: asyncio.Task[None] | None = None
        self._closed = False
        self._garbled = 0
        self._quiet_until = 0.0

    @property
    def healthy(self) -> bool:
        return self._heard.is_set()

    def ring_shards(self, shards: Iterable[ShardId]) -> None:
        self._shards.update(shards)
        self._start_ringing()

    def ring_replies(self, requests: Iterable[Snowflake]) -> None:
        self._replies.update(requests)
        self._start_ringing()

    def ring_acks(self, acks: Iterable[tuple[ShardId, Snowflake]]) -> None:
        self._acks.update(acks)
        self._start_ringing()

    def ring_topology(self) -> None:
        self._topology = True
        self._start_ringing()

    def listen(self, listener: DoorbellListener) -> None:
        self._listener = listener
        if self._hearer is None and not self._closed:
            self._hearer = _start(self._keep(self._hear, "listener"), "doorbell-listener")

    async def listening(self, within: timedelta) -> None:
        """Wait until the first attempt to listen has ended well or badly, if anybody listens."""
        if self._hearer is not None:
            await _set_within(self._tried, within)

    async def close(self) -> None:
        """Send what is still to be rung, if that is quick, and end both connections."""
        self._closed = True
        self._wake.set()
        if self._ringer is not None:
            await asyncio.wait([self._ringer], timeout=1)
        for task in (self._ringer, self._hearer):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._heard.clear()

    # --- the two connections ----------------------------------------------------------------------

    def _start_ringing(self) -> None:
        self._wake.set()
        if self._ringer is None and not self._closed:
            self._ringer = _start(self._keep(self._ring, "ringer"), "doorbell-ringer")

    async def _keep(self, serve: Callable[[], Coroutine[None, None, None]], role: str) -> None:
        """Serve one connection after the other, with back-off between them."""
        failures = 0
        while True:
            since = monotonic()
            try:
                await serve()
                return
            except ConfigurationError as error:
                log.warning("no doorbell, polling only", extra={"role": role, "error": str(error)})
                return
            except (StorageUnavailable, asyncpg.PostgresError, *LOST) as error:
                if monotonic() - since > _SERVED:
                    failures = 0
                # An outage is told of once, however long it is; and one that rings finds the end
                # of its connection at its next ring only, when it may long be over.
                log.log(
                    logging.WARNING if failures == 0 and role == "listener" else logging.DEBUG,
                    "notifications are cut off; polling until they are back",
                    extra={"role": role, "error": str(error)},
                )
            finally:
                if role == "listener":
                    self._tried.set()
            if self._closed:
                return
            await asyncio.sleep(again_in(failures, first=_BACKOFF, longest=_BACKOFF_LIMIT))
            failures += 1

    async def _ring(self) -> None:
        session = await self._connector.open(self._identity, "ringer", _RINGER)
        try:
            while True:
                if self._shards or self._replies or self._acks or self._topology:
                    await self._send(session)
                    continue
                if self._closed:
                    return
                self._wake.clear()
                await self._wake.wait()
        finally:
            session.terminate()

    async def _send(self, session: Session) -> None:
        shards = _take(self._shards)
        replies = _take(self._replies)
        acks = _take(self._acks)
        everybody = [self._everybody] if self._topology else []
        self._topology = False
        known = [shard for shard in shards if shard.group in self._groups]
        taken = [(shard, id) for shard, id in acks if shard.group in self._groups]
        try:
            call = self._call(known, replies, everybody, taken)
            await session.ask(*call, within=self._connector.statement_timeout)
        except BaseException:
            # Nobody knows whether it was heard, and hearing it twice does no harm.
            self._shards.update(shards)
            self._replies.update(replies)
            self._acks.update(acks)
            self._topology = self._topology or bool(everybody)
            raise

    def _call(
        self,
        shards: Sequence[ShardId],
        replies: Sequence[Snowflake],
        everybody: Sequence[str],
        acks: Sequence[tuple[ShardId, Snowflake]],
    ) -> list[Any]:
        """The smallest query that says it: a hint that comes alone is waited for."""
        queries, group_id = self._connector.queries, self._groups.id
        if not (everybody or acks):
            if len(shards) == 1 and not replies:
                return queries.call("ring_owner", group_id(shards[0].group), shards[0].number)
            if len(replies) == 1 and not shards:
                return queries.call("ring_waiters", replies[0])
        return queries.call(
            "ring",
            *self._groups.columns(shards),
            sorted(replies),
            everybody,
            *self._groups.columns(shard for shard, _ in acks),
            [request_id for _, request_id in acks],
            False,
        )

    async def _hear(self) -> None:
        session = await self._connector.open(self._identity, "listener", {"statement_timeout": "0"})
        ended = asyncio.Event()
        session.add_termination_listener(lambda _: ended.set())
        try:
            with session.deadline(self._connector.statement_timeout):
                for channel in (channel_of(self._identity), self._everybody):
                    await session.add_listener(channel, self._on_notify)
            if self._tried.is_set():
                log.info("notifications arrive again")
            self._heard.set()
            self._tried.set()
            if self._listener is not None:
                self._listener.doorbell_restored()
            while not await _set_within(ended, self._ping):
                query = self._connector.queries["backend"]
                await session.ask(query, within=self._connector.statement_timeout)
        finally:
            self._heard.clear()
            session.terminate()
        raise StorageUnavailable("the listening connection has ended")

    def _on_notify(self, _: object, pid: int, channel: str, payload: object) -> None:
        if self._listener is None:
            return
        bell = parse_bell(payload)
        if bell is None:
            self._complain(channel, pid)
            return
        self._hand_over(bell, self._listener)

    def _complain(self, channel: str, pid: int) -> None:
        """Now and then only: whoever may connect may send as many as he likes."""
        self._garbled += 1
        if monotonic() < self._quiet_until:
            return
        log.warning(
            "%d notifications were not understood, the last one on %s by server process %d: none"
            " of ours sends such",
            self._garbled,
            channel,
            pid,
        )
        self._garbled, self._quiet_until = 0, monotonic() + _QUIET

    def _hand_over(self, bell: Bell, listener: DoorbellListener) -> None:
        if bell is ALL:
            listener.topology_rung()
            return
        if bell.post:
            listener.post_rung()
        if bell.acks:
            listener.acks_rung(bell.acks)
        if bell.replies:
            listener.replies_rung(bell.replies)
        shards: list[ShardId] = []
        for group_id, number in bell.shards:
            try:
                shards.append(self._groups.shard(group_id, number))
            except UnknownGroup:
                continue  # not a group of this process
        if shards:
            listener.shards_rung(shards, old=bell.old)


def _take(pending: set[T]) -> list[T]:
    """Up to a statement's worth; the rest goes with the next one."""
    return [pending.pop() for _ in range(min(len(pending), _BATCH))]


async def _set_within(event: asyncio.Event, within: timedelta) -> bool:
    try:
        async with asyncio.timeout(within.total_seconds()):
            await event.wait()
    except TimeoutError:
        return False
    return True


def _start(run: Coroutine[None, None, None], name: str) -> asyncio.Task[None]:
    """A task this object owns and ends in ``close``."""
    return asyncio.get_running_loop().create_task(run, name=name)
