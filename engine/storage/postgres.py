"""The storage on PostgreSQL: a façade over the parts that each keep one thing.

From the roots (client, runner, admin, testing). A process that only reads opens one connection of
the pool and needs SELECT only; everything else is opened when it is first asked for.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import replace
from datetime import datetime, timedelta
from types import TracebackType
from typing import Self
from uuid import UUID, uuid4

from engine.core.clock import SystemClock, monotonic
from engine.core.envelope import AckChunk, EnvelopeRequest, Interrupt
from engine.core.errors import ConfigurationError
from engine.core.ids import MachineLease, RunnerId, ShardId, Snowflake, first_snowflake
from engine.core.journal import JournalRow
from engine.storage.connect import OUR_PLANS, Connector, TransactionPooler
from engine.storage.doorbell import PostgresDoorbell, channel_of
from engine.storage.groups import Groups
from engine.storage.inspection import Inspection
from engine.storage.lane_session import PostgresLaneSession
from engine.storage.machine import MachineIds
from engine.storage.pools import LOCK_TIMEOUT, Pools
from engine.storage.post_office import PostOffice
from engine.storage.protocol import (
    Doorbell,
    DoorbellListener,
    Fence,
    Post,
    Posted,
    Received,
    Saved,
    SaveRequest,
)
from engine.storage.queries import Queries
from engine.storage.registry import PostgresRegistry
from engine.storage.retention import Pruned, RequestTerm, Term
from engine.storage.saving import Saving
from engine.storage.schema_version import check_schema
from engine.storage.server import ServerFacts, server_facts
from engine.storage.stored_requests import StoredRequests
from engine.storage.transaction import Transaction
from engine.storage.upkeep import Upkeep, look_after
from engine.storage.user_transaction import UserTransactions

_LARGEST_GROUP = 32_767


class PostgresStorage(Inspection):
    """A ``Storage``. ``identity`` names the sessions of this process and its channel, where the
    doorbell is heard and post arrives: the runner's id inside a runner, else one of its own.

    ``dsn`` must lead to the server itself, or to a pooler in session mode; ``pool_dsn`` may lead
    to a transaction pooler. ``pool_size`` bounds the connections of user transactions; the
    engine's own statements share up to four more, volatile messages have one, and so have requests
    whose keys are held by somebody's open transaction.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str = "engine",
        identity: UUID | None = None,
        pool_dsn: str | None = None,
        pool_size: int = 10,
        shards_per_group: int = 300,
        notifications: bool = True,
        statement_timeout: timedelta = timedelta(seconds=10),
        connect_timeout: timedelta = timedelta(seconds=10),
        machine_lease: timedelta = timedelta(minutes=10),
        clock: SystemClock | None = None,
    ) -> None:
        if not 1 <= shards_per_group <= _LARGEST_GROUP:
            raise ConfigurationError(f"shards_per_group must be from 1 to {_LARGEST_GROUP}")
        if pool_size < 1:
            raise ConfigurationError("pool_size must be at least 1")
        self.identity = identity or uuid4()
        self.clock = clock or SystemClock()
        self._dsn = dsn
        self._shards_per_group = shards_per_group
        self._had: dict[ShardId, int] = {}
        self._direct = Connector(
            dsn=dsn,
            queries=Queries(schema),
            statement_timeout=statement_timeout,
            connect_timeout=connect_timeout,
        )
        pooled = self._direct
        if pool_dsn is not None:
            pooled = replace(self._direct, dsn=pool_dsn, pooled=True)
        self._pools = Pools(connector=pooled, identity=self.identity, size=pool_size)
        super().__init__(pool=self._pools.own, groups=Groups())
        self._ensuring = asyncio.Lock()
        self._channel = channel_of(self.identity) if notifications else None
        self._doorbell = (
            PostgresDoorbell(connector=self._direct, identity=self.identity, groups=self._groups)
            if notifications
            else None
        )
        self._saving = Saving(
            pool=self._pool,
            apart=self._pools.apart,
            groups=self._groups,
            learn_groups=self._learn_groups,
            channel=self._channel,
        )
        self._requests = StoredRequests(
            pool=self._pool,
            groups=self._groups,
            learn_groups=self._learn_groups,
            channel=self._channel,
            listening=self._listening,
        )
        self._post = PostOffice(
            sending=self._pools.post,
            pool=self._pool,
            identity=self.identity,
            groups=self._groups,
            learn_groups=self._learn_groups,
        )
        self._transactions = UserTransactions(pool=self._pools.user, groups=self._groups)
        self._machines = MachineIds(
            pool=self._pool, holder=self.identity, duration=machine_lease, clock=self.clock
        )

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def open(self) -> None:
        """Check that the server can be reached and has this code's schema; align the clock."""
        try:
            await self._align_clock()
        except TransactionPooler:
            # Good enough for a client, which then polls; opening a lane says that it is not.
            self._pools.serve_transactions_only()
            await self._align_clock()
        await check_schema(self._pool)
        await self._learn_groups()

    async def close(self) -> None:
        if self._doorbell is not None:
            await self._doorbell.close()
        await self._transactions.close()
        await self._pools.close()

    @property
    def doorbell(self) -> Doorbell:
        return self._doorbell or _NoDoorbell()

    # --- groups and machine ids -------------------------------------------------------------------

    def shards_in(self, group: str) -> int:
        return self._groups.size(group)

    async def ensure_groups(self, groups: Sequence[str]) -> None:
        if not self._missing(groups):
            return
        async with self._ensuring:  # many who want a new group at once ask once
            if self._missing(groups):
                await self._learn_groups()
            while missing := self._missing(groups):
                # Random, so that the advisory locks of two schemas do not meet; a draw that is
                # taken inserts nothing and is drawn again.
                drawn = [secrets.randbelow(1 << 32) - (1 << 31) for _ in missing]
                await self._pool.fetch("create_groups", missing, drawn, self._shards_per_group)
                await self._learn_groups()

    def _missing(self, groups: Sequence[str]) -> list[str]:
        return [name for name in dict.fromkeys(groups) if name not in self._groups]

    async def lease_machine(self, lease: MachineLease | None) -> MachineLease:
        return await self._machines.lease(lease)

    async def release_machine(self, lease: MachineLease) -> None:
        await self._machines.release(lease)

    # --- requests and what becomes of them --------------------------------------------------------

    async def save(
        self, requests: Sequence[SaveRequest], *, apart: bool = False
    ) -> Sequence[Saved]:
        return await self._saving.save(requests, apart=apart) if requests else []

    async def save_on(self, connection: object, request: SaveRequest) -> Saved:
        return await self._saving.save_on(connection, request)

    async def watch(self, requests: Sequence[Snowflake]) -> None:
        await self._requests.watch(requests)

    async def unwatch(self, requests: Sequence[Snowflake]) -> None:
        await self._requests.unwatch(requests)

    async def sweep_waiters(self) -> int:
        return await self._requests.sweep_waiters()

    async def acknowledge(
        self, acks: Sequence[AckChunk], *, wait: bool = False
    ) -> Mapping[Snowflake, int]:
        return await self._requests.acknowledge(acks, wait=wait)

    async def interrupt(self, interrupts: Sequence[Interrupt]) -> Sequence[bool]:
        return await self._requests.interrupt(interrupts)

    async def follow(self, execution: Snowflake, follower: Snowflake) -> bool:
        return bool(await self._pool.fetch("follow", execution, follower))

    async def revive(self, requests: Sequence[Snowflake]) -> Sequence[ShardId]:
        return await self._requests.revive(requests)

    async def reopen(
        self,
        request: EnvelopeRequest,
        *,
        run: int,
        journal: Sequence[JournalRow],
        version: int | None = None,
    ) -> ShardId | None:
        return await self._requests.reopen(request, run=run, journal=journal, version=version)

    async def fork(
        self, request: SaveRequest, *, started_at: datetime, journal: Sequence[JournalRow]
    ) -> bool:
        await self.ensure_groups([request.envelope.address.shard.group])
        return await self._requests.fork(request, started_at=started_at, journal=journal)

    async def finished(
        self, terms: Sequence[Term], *, limit: int
    ) -> Sequence[Sequence[tuple[Snowflake, datetime]]]:
        columns = zip(*((t.workflow, t.status.value, t.after, t.until) for t in terms), strict=True)
        found: list[list[tuple[Snowflake, datetime]]] = [[] for _ in terms]
        if not terms:
            return found
        rows = await self._pool.fetch("finished", *columns, limit)
        for row in rows:
            found[int(row["nth"]) - 1].append((Snowflake(row["request_id"]), row["finished_at"]))
        return found

    async def prune(
        self, executions: Sequence[Snowflake], *, before: datetime
    ) -> Sequence[Snowflake]:
        ids = sorted(set(executions))
        rows = await self._pool.fetch("prune", ids, before) if ids else ()
        return [row["request_id"] for row in rows]

    async def prune_runs(
        self, until: Mapping[str, datetime], *, after: Snowflake, limit: int, runs: int
    ) -> Pruned:
        rows = await self._pool.fetch(
            "prune_runs", list(until), list(until.values()), after, limit, runs
        )
        return Pruned(count=rows[0]["runs"], last=rows[0]["last"])

    async def prune_requests(self, term: RequestTerm, *, after: Snowflake, limit: int) -> Pruned:
        behind = first_snowflake(term.last + timedelta(milliseconds=1))
        group = self._groups.id(term.group)
        rows = await self._pool.fetch(
            "prune_requests", group, after, behind, term.until, term.failed_until, limit
        )
        return Pruned(count=rows[0]["count"], last=rows[0]["last"])

    async def write_pause(self, workflow: str, *, paused: bool, reason: str, by: str) -> bool:
        return bool(await self._pool.fetch("write_pause", workflow, paused, reason, by))

    async def transact(
        self, fence: Fence, work: Callable[[Transaction], Awaitable[JournalRow]]
    ) -> None:
        await self._transactions.transact(fence, work)

    # --- volatile messages ------------------------------------------------------------------------

    async def post(self, messages: Sequence[Post]) -> Sequence[Posted]:
        return await self._post.post(messages)

    async def take_post(self) -> Sequence[Received]:
        return await self._post.take()

    async def present(self, processes: Collection[UUID]) -> Set[UUID]:
        rows = await self._pool.fetch("present", [str(each) for each in processes])
        return {UUID(row["id"]) for row in rows}

    async def sweep_post(self, older_than: timedelta) -> int:
        return await self._post.sweep(older_than)

    # --- for a diagnosis; only upkeep needs the schema --------------------------------------------

    async def server(self) -> ServerFacts:
        return await server_facts(self._pool)

    async def upkeep(self, *, now: datetime, patience: timedelta) -> Upkeep:
        return await look_after(self._pool, now=now, patience=patience)

    async def connect_directly(self) -> None:
        """Open a session as a lane does, and close it: raises what a runner would."""
        session = await self._direct.open(self.identity, "probe")
        await session.close(timeout=1)

    # --- a runner's own connections ---------------------------------------------------------------

    async def open_registry(self, runner: RunnerId) -> PostgresRegistry:
        return PostgresRegistry(connector=self._direct, runner=runner, clock=self.clock)

    async def open_lane(self, runner: RunnerId, index: int) -> PostgresLaneSession:
        """``ConfigurationError`` when the DSN leads to a transaction pooler."""
        settings = OUR_PLANS | LOCK_TIMEOUT
        session = await self._direct.open(runner, f"lane-{index}", settings)
        return PostgresLaneSession(
            session=session,
            runner=runner,
            groups=self._groups,
            queries=self._pool.queries,
            channel=self._channel,
            statement_timeout=self._direct.statement_timeout,
            address=self._direct.address,
            clock=self.clock,
            had=self._had,
        )

    async def _listening(self) -> None:
        if self._doorbell is not None:
            await self._doorbell.listening(_LISTENING)

    async def _align_clock(self) -> None:
        sent = monotonic()
        rows = await self._pool.fetch("now")
        self.clock.align(database=rows[0]["now"], sent=sent, received=monotonic())


_LISTENING = timedelta(seconds=1)


class _NoDoorbell:
    """Nothing is rung and nothing heard: the poll does it all."""

    @property
    def healthy(self) -> bool:
        return False

    def ring_shards(self, shards: Iterable[ShardId]) -> None: ...
    def ring_replies(self, requests: Iterable[Snowflake]) -> None: ...
    def ring_acks(self, acks: Iterable[tuple[ShardId, Snowflake]]) -> None: ...
    def ring_topology(self) -> None: ...
    def listen(self, listener: DoorbellListener) -> None: ...
