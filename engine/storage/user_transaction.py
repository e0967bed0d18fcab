"""A ``@transaction`` step's transaction: fenced by the shard's epoch, journaled in the same commit.

From ``postgres`` for ``workflow``. It runs beside the lane, on a pooled connection under the
runner's name, so that a takeover ends it like the rest.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import asyncpg
from asyncpg.transaction import Transaction as AsyncpgTransaction

from engine.core.errors import (
    ConfigurationError,
    EngineError,
    OwnershipLost,
    StorageUnavailable,
)
from engine.core.journal import JournalRow
from engine.core.retry import again_in
from engine.storage.columns import journal_values
from engine.storage.groups import Groups
from engine.storage.outage import LOST, refused, transient, unavailable
from engine.storage.pool import Pool
from engine.storage.protocol import Fence
from engine.storage.records import journal_from
from engine.storage.session import Session
from engine.storage.transaction import Row, Transaction

if TYPE_CHECKING:  # imported by the first step that wants a session
    from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

log: logging.Logger = logging.getLogger(__name__)

Outer = AsyncpgTransaction
Work = Callable[[Transaction], Awaitable[JournalRow]]

_NO_DISK = (asyncpg.DiskFullError, asyncpg.PostgresIOError)
"""No step can help that: it is an outage."""
_ROLLBACK = timedelta(seconds=5)
_QUESTION = timedelta(minutes=1)
_BACKOFF_LIMIT = 2.0


class UserTransactions:
    """Runs user transactions on a pool of their own."""

    def __init__(self, *, pool: Pool, groups: Groups) -> None:
        self._pool = pool
        self._groups = groups
        self._alchemy: AsyncEngine | None = None

    async def transact(self, fence: Fence, work: Work) -> None:
        """See ``Storage.transact``. A cancellation that comes while the commit is under way waits
        for it, and is dropped when the transaction has committed."""
        async with self._pool.session() as session:
            row, outer = await self._run(session, fence, work)
            committed = await _to_the_end(self._conclude(session, outer, row))
            if committed:
                await self._clean(session)
        if not committed:
            await self._ask_whether_committed(row)

    async def close(self) -> None:
        if self._alchemy is not None:
            await self._alchemy.dispose()

    async def _run(self, session: Session, fence: Fence, work: Work) -> tuple[JournalRow, Outer]:
        """Begin, check the fence, do the work; whatever goes wrong has been rolled back."""
        within = self._pool.connector.statement_timeout
        outer = session.transaction(isolation="read_committed")
        try:
            with session.deadline(within):
                await outer.start()
        except LOST as error:
            raise unavailable(error, self._pool.connector.address) from error
        transaction = PostgresTransaction(session, self._engine)
        try:
            await self._pool.settle_locally(session)
            # INVARIANT fence-first: a statement of its own at READ COMMITTED, so that it waits for
            # a takeover that is under way and then sees its epoch; the row stays locked to the end.
            group_id, number = self._groups.id(fence.shard.group), fence.shard.number
            arguments = group_id, number, fence.epoch, fence.runner
            held = await self._ours(session, "check_fence", *arguments)
            if not held:
                raise OwnershipLost(
                    f"shard {fence.shard} has another owner or epoch by now, or is another server's"
                )
            row = await work(transaction)
            if not session.is_in_transaction():
                raise ConfigurationError(
                    "the step ended its transaction itself: leave commit and rollback to the engine"
                )
        except BaseException as error:
            # A step may see the end of its session as an error of any type.
            outage = session.is_closed() or isinstance(error, _NO_DISK)
            await self._roll_back(session, outer)
            if outage and isinstance(error, Exception) and not isinstance(error, EngineError):
                raise unavailable(error, self._pool.connector.address) from error
            raise
        finally:
            transaction.end()
        return row, outer

    async def _conclude(self, session: Session, outer: Outer, row: JournalRow) -> bool:
        """Insert the journal row and commit. False when nobody knows whether it committed."""
        within = self._pool.connector.statement_timeout
        try:
            await self._ours(session, "append", *journal_values(row))
        except asyncpg.UniqueViolationError as error:
            await self._roll_back(session, outer)
            raise OwnershipLost(f"position {row.position} of the journal is taken") from error
        except BaseException:
            await self._roll_back(session, outer)
            raise
        try:
            with session.deadline(within):
                await outer.commit()
        except LOST:
            session.terminate()
            return False
        return True

    async def _ours(self, session: Session, name: str, *args: object) -> Sequence[asyncpg.Record]:
        """A statement of the engine's own. What it meets (a lock, a full disk, a server that has
        become a standby) is not the step's failure, unless it is refused for its rows."""
        call, within = self._pool.queries.call(name, *args), self._pool.connector.statement_timeout
        try:
            return await session.ask(*call, within=within)
        except (asyncpg.PostgresError, *LOST) as error:
            if refused(error):
                raise
            if not transient(error):
                session.terminate()
            raise unavailable(error, self._pool.connector.address) from error

    async def _ask_whether_committed(self, row: JournalRow) -> None:
        """Try to insert the same row: that waits for the old backend, which a select would not.

        Asks until there is an answer; only a cancellation ends it without one.
        """
        failures = 0
        while True:
            try:
                async with self._pool.session() as session:
                    stored = await self._insert_in_vain(session, row)
                break
            except (StorageUnavailable, asyncpg.PostgresError, *LOST) as error:
                log.warning(
                    "the outcome of a transaction is not known yet",
                    extra={"execution": row.execution, "error": str(error)},
                )
            await asyncio.sleep(again_in(failures, longest=_BACKOFF_LIMIT))
            failures += 1
        if stored is None:
            raise StorageUnavailable("the connection was lost before the transaction committed")
        if stored != row:
            raise OwnershipLost(f"position {row.position} of the journal is another owner's")

    async def _insert_in_vain(self, session: Session, row: JournalRow) -> JournalRow | None:
        """The row that is stored under the key, or None; nothing is written."""
        queries = self._pool.queries
        with session.deadline(_QUESTION):
            outer = session.transaction(isolation="read_committed")
            await outer.start()
            try:
                await self._pool.settle_locally(session)
                try:
                    async with session.transaction():
                        await session.fetch(*queries.call("append", *journal_values(row)))
                except asyncpg.UniqueViolationError:
                    rows = await session.fetch(*queries.call("history", row.execution))
                    stored = [journal_from(record) for record in rows]
                    key = (row.run, row.position)
                    return next(each for each in stored if (each.run, each.position) == key)
                return None
            finally:
                await self._roll_back(session, outer)

    async def _roll_back(self, session: Session, outer: Outer) -> None:
        if session.is_closed():
            return
        try:
            with session.deadline(_ROLLBACK):
                await outer.rollback()
            await self._clean(session)
        except (asyncpg.PostgresError, *LOST):
            session.terminate()

    async def _clean(self, session: Session) -> None:
        """Leave nothing of one step's settings for the next."""
        if self._pool.connector.pooled or session.is_closed():
            return
        try:
            with session.deadline(_ROLLBACK):
                await session.reset()
                await self._pool.connector.settle(session, self._pool.settings)
        except (asyncpg.PostgresError, *LOST):
            session.terminate()

    def _engine(self) -> "AsyncEngine":
        from engine.storage.borrowed import borrowing_engine

        if self._alchemy is None:
            self._alchemy = borrowing_engine()
        return self._alchemy


class PostgresTransaction:
    """The ``Transaction`` a step gets. It is of no use once the step has returned."""

    def __init__(self, session: Session, engine: "Callable[[], AsyncEngine]") -> None:
        self._session: Session | None = session
        self._engine = engine

    async def execute(self, query: str, *args: object) -> str:
        return await self._open().execute(query, *args)

    async def fetch(self, query: str, *args: object) -> Sequence[Row]:
        return cast("Sequence[Row]", await self._open().fetch(query, *args))

    async def fetchrow(self, query: str, *args: object) -> Row | None:
        return cast("Row | None", await self._open().fetchrow(query, *args))

    async def fetchval(self, query: str, *args: object) -> Any:
        return await self._open().fetchval(query, *args)

    def session(self) -> "AbstractAsyncContextManager[AsyncSession]":
        from engine.storage.borrowed import borrowed_session

        return borrowed_session(self._engine(), self._open())

    def end(self) -> None:
        self._session = None

    def _open(self) -> Session:
        if self._session is None:
            raise ConfigurationError(
                "the step's transaction has ended: use `tx` in the step only, and await it there"
            )
        return self._session


async def _to_the_end(run: Coroutine[None, None, bool]) -> bool:
    """Hold a cancellation back until the outcome is known; raise it unless that is a commit."""
    task = asyncio.get_running_loop().create_task(run, name="conclude-transaction")
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None and (task.exception() is not None or not task.result()):
        raise cancelled
    return task.result()
