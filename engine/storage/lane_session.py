"""One lane's connection: the locks it holds and the rows it writes live and die together.

Opened by ``postgres`` for ``lane``. Statements run one at a time and are never cancelled: when one
takes too long, the connection ends, and the locks with it.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta

import asyncpg

from engine.core.clock import SystemClock, monotonic
from engine.core.errors import StorageUnavailable
from engine.core.ids import RunnerId, ShardId, Snowflake
from engine.storage.batch import Batch
from engine.storage.columns import dispatch_arguments, request_columns
from engine.storage.groups import Groups, UnknownGroup, once_known
from engine.storage.outage import Address, refused, transient, unavailable
from engine.storage.protocol import (
    SUSPECT,
    BadBatch,
    Commit,
    Flushed,
    SaveRequest,
    Sweep,
)
from engine.storage.queries import Queries
from engine.storage.queues import Dispatched, QueueWrite
from engine.storage.records import queue_item_from
from engine.storage.saving import saved_from
from engine.storage.session import Session
from engine.storage.sweeping import sweep_from

log: logging.Logger = logging.getLogger(__name__)

_BLAMED = 200
_PER_SHARD = 64
_RACES = 5
_FOLLOWED = 4


class PostgresLaneSession:
    """A ``LaneSession`` on a direct connection. A call that is cancelled ends the session: whether
    its statement has committed is not known."""

    def __init__(
        self,
        *,
        session: Session,
        runner: RunnerId,
        groups: Groups,
        queries: Queries,
        channel: str | None,
        statement_timeout: timedelta,
        address: Address,
        clock: SystemClock,
        had: dict[ShardId, int],
    ) -> None:
        self._session = session
        self._runner = runner
        self._groups = groups
        self._queries = queries
        self._channel = channel
        self._timeout = statement_timeout
        self._address = address
        self._clock = clock
        self._had = had
        self._turn = asyncio.Lock()
        self._held: dict[ShardId, int] = {}
        self._on_close: list[Callable[[], None]] = []
        self._ended = False
        session.add_termination_listener(lambda _: self._end())

    @property
    def closed(self) -> bool:
        return self._ended or self._session.is_closed()

    def on_close(self, callback: Callable[[], None]) -> None:
        if self.closed:
            asyncio.get_running_loop().call_soon(callback)
        else:
            self._on_close.append(callback)

    async def acquire(self, shards: Sequence[ShardId]) -> Mapping[ShardId, int]:
        # INVARIANT lock-once: advisory locks stack, so one that is held is never asked for again.
        wanted = [shard for shard in dict.fromkeys(shards) if shard not in self._held]
        async with self._turn:
            return await self._acquire(wanted) if wanted else {}

    async def release(self, shards: Sequence[ShardId]) -> None:
        held = [shard for shard in dict.fromkeys(shards) if shard in self._held]
        if held:
            async with self._turn:
                await self._release(held)

    async def flush(self, commits: Sequence[Commit]) -> Flushed:
        async with self._turn:
            return await self._flush(commits)

    async def dispatch(self, write: QueueWrite) -> Dispatched:
        async with self._turn:
            return await self._dispatch(write)

    async def sweep(
        self,
        shards: Sequence[ShardId],
        *,
        in_flight: Sequence[int],
        resident: Sequence[Snowflake],
        held: Sequence[Collection[int]] = (),
        admitted: Sequence[int] | None = None,
        floors: Sequence[int] = (),
        limit: int,
        horizon: timedelta,
    ) -> Sweep:
        # A shard with a deep backlog must not make every sweep read all of it.
        per_shard = max(_PER_SHARD, 4 * limit // max(1, len(shards)))
        pairs = [(nth, key) for nth, keys in enumerate(held, 1) for key in keys]
        nths, keys = [nth for nth, _ in pairs], [key for _, key in pairs]
        arguments = in_flight, resident, limit, per_shard, horizon, keys, floors, admitted, nths
        async with self._turn:
            return await self._sweep(shards, arguments, limit=limit, per_shard=per_shard)

    def terminate(self) -> None:
        self._session.terminate()
        self._end()

    async def close(self) -> None:
        async with self._turn:
            try:
                await self._session.close(timeout=self._timeout.total_seconds())
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                self._session.terminate()
        self._end()

    # --- statements -------------------------------------------------------------------------------

    async def _acquire(self, wanted: Sequence[ShardId]) -> Mapping[ShardId, int]:
        locked = await self._ask("lock_shards", *self._groups.columns(wanted), self._runner)
        shards = [self._groups.shard(row["group_id"], row["shard"]) for row in locked]
        if not shards:
            return {}
        # INVARIANT lock-then-epoch: a statement of its own, so that it sees all that the former
        # owner committed before its lock was free.
        columns, had = self._groups.columns(shards), [self._had.get(each, 0) for each in shards]
        claimed: Sequence[asyncpg.Record] = ()
        try:
            claimed = await self._write("claim_shards", *columns, self._runner, had)
        except BadBatch as error:  # somebody has locked the table; what is held stays
            log.warning("shards could not be claimed", extra={"error": str(error)})
        epochs = {
            self._groups.shard(row["group_id"], row["shard"]): int(row["epoch"]) for row in claimed
        }
        skipped = [shard for shard in shards if shard not in epochs]
        if skipped:
            await self._ask("unlock_shards", *self._groups.columns(skipped))
        self._held.update(epochs)
        self._had.update(epochs)
        lost = [self._groups.shard(row["group_id"], row["shard"]) for row in claimed if row["lost"]]
        if lost:
            await self._count_lost(lost)
        return epochs

    async def _count_lost(self, shards: Sequence[ShardId]) -> None:
        """Count what the former owner had in hand: nothing more is done to whatever killed it."""
        try:
            await self._write("count_lost", *self._groups.columns(shards), SUSPECT, _BLAMED)
        except BadBatch as error:
            log.warning("failed deliveries were not counted", extra={"error": str(error)})

    async def _release(self, shards: Sequence[ShardId]) -> None:
        columns = self._groups.columns(shards)
        deadline = monotonic() + self._timeout.total_seconds()
        while True:
            try:
                await self._write("disclaim_shards", *columns, self._runner)
                break
            except BadBatch as error:
                # A user transaction still fences one of them; unlocking before it has ended would
                # let it commit beside the next owner.
                if not error.transient or monotonic() > deadline:
                    self.terminate()
                    raise StorageUnavailable(f"a shard could not be released: {error}") from error
        await self._ask("unlock_shards", *columns)
        for shard in shards:
            self._held.pop(shard, None)  # all have gone if the session has ended meanwhile

    async def _flush(self, commits: Sequence[Commit]) -> Flushed:
        batch = Batch(commits, self._groups)
        requests = batch.requests()
        try:
            statement, notes = batch.flush(requests, self._channel), batch.notes()
        except UnknownGroup as error:
            raise BadBatch(f"there is no shard group {str(error)!r}") from error
        flushed = Flushed(requests={}, replies={})
        if statement is not None:
            rows = await self._write(statement.name, *statement.arguments)
            flushed = await self._flushed(requests, rows, batch.overtaken)
        committed = statement is not None
        for note in notes:
            try:
                await self._write(note.name, *note.arguments)
                committed = True
            except BadBatch as error:
                # What is committed must not be tried again with the batch.
                if not committed:
                    raise
                log.warning("a note was lost", extra={"note": note.name, "error": str(error)})
        return flushed

    async def _flushed(
        self,
        requests: Sequence[SaveRequest],
        rows: Sequence[asyncpg.Record],
        overtaken: Collection[Snowflake],
    ) -> Flushed:
        others = [row for row in rows if row["outcome"] is None]
        returned = {row["asked"]: row["seq"] for row in others if row["seq"] is not None}
        late = {row["asked"] for row in others if row["seq"] is None}
        answers = saved_from(row for row in rows if row["outcome"] not in (None, _FOLLOWED))
        raced = [r for r in requests if r.envelope.request_id not in answers]
        for _ in range(_RACES):
            if not raced:
                break
            # All else is committed; others took these keys meanwhile, which a new statement sees.
            columns = request_columns(raced, self._groups)
            answers |= saved_from(await self._ask("save", *columns, self._channel))
            raced = [r for r in raced if r.envelope.request_id not in answers]
        return Flushed(
            requests=answers,
            replies=returned,
            overtaken=late.union(overtaken),
            followed=await self._followed(rows),
        )

    async def _followed(
        self, rows: Sequence[asyncpg.Record]
    ) -> Mapping[Snowflake, Sequence[ShardId]]:
        told = [row for row in rows if row["outcome"] == _FOLLOWED]
        shards = await self._shards_of([(row["found"], row["seq"]) for row in told])
        found: dict[Snowflake, list[ShardId]] = {}
        for row, shard in zip(told, shards, strict=True):
            found.setdefault(row["asked"], []).append(shard)
        return found

    async def _dispatch(self, write: QueueWrite) -> Dispatched:
        rows = await self._write("dispatch", *dispatch_arguments(write, self._groups))
        told = [(row["told"], row["shard"]) for row in rows if row["told"] is not None]
        return Dispatched(
            chosen=[queue_item_from(row) for row in rows if row["told"] is None],
            told=await self._shards_of(told),
        )

    async def _shards_of(self, pairs: Sequence[tuple[int, int]]) -> list[ShardId]:
        """By ids of groups and numbers."""
        return await once_known(
            lambda: [self._groups.shard(*pair) for pair in pairs], self._learn_groups
        )

    async def _learn_groups(self) -> None:
        self._groups.learn(await self._ask("groups"))

    async def _sweep(
        self,
        shards: Sequence[ShardId],
        arguments: Sequence[object],
        *,
        limit: int,
        per_shard: int,
    ) -> Sweep:
        sent = monotonic()
        rows = await self._write("sweep", *self._groups.columns(shards), *arguments)
        self._clock.align(database=rows[0]["now"], sent=sent, received=monotonic())
        return await once_known(
            lambda: sweep_from(rows, self._groups, self._runner, limit=limit, per_shard=per_shard),
            self._learn_groups,
        )

    async def _write(self, name: str, *args: object) -> Sequence[asyncpg.Record]:
        """As ``_ask``, but ``BadBatch`` when nothing was written and the session is fine."""
        call = self._queries.call(name, *args)
        try:
            return await self._session.ask(*call, within=self._timeout)
        except Exception as error:
            if not self._session.is_closed() and (refused(error) or transient(error)):
                raise BadBatch(str(error), transient=transient(error)) from error
            raise self._lost(error) from error

    async def _ask(self, name: str, *args: object) -> Sequence[asyncpg.Record]:
        call = self._queries.call(name, *args)
        try:
            return await self._session.ask(*call, within=self._timeout)
        except Exception as error:
            raise self._lost(error) from error

    def _lost(self, error: Exception) -> StorageUnavailable:
        # INVARIANT pen-ends: whatever is not known to be harmless ends the session and its locks.
        self.terminate()
        return unavailable(error, self._address)

    def _end(self) -> None:
        if self._ended:
            return
        self._ended = True
        self._held.clear()
        callbacks, self._on_close = self._on_close, []
        loop = asyncio.get_running_loop()
        for callback in callbacks:
            loop.call_soon(callback)
