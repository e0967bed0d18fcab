"""A few sessions that any statement may borrow, opened when they are needed.

From ``postgres`` and the reads of ``inspection``; sessions come from ``connect``. Nothing that is
bound to a session (an advisory lock, LISTEN) may be done here.
"""

import asyncio
import random
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import asyncpg

from engine.core.clock import monotonic
from engine.core.errors import StorageUnavailable
from engine.storage.connect import PLANNED_ANEW, Connector, milliseconds
from engine.storage.outage import LOST, refused, transient, unavailable
from engine.storage.queries import Queries
from engine.storage.session import Session

_BACKOFF = 0.05
_KNOCKS = 3
"""How often a server is asked for a session before a statement that was not sent is given up: one
that is ended while it opens says nothing of the next."""
_BACKOFF_LIMIT = 1.0


class Pool:
    """Up to ``size`` sessions. One that was lost, or left in a transaction, is not used again."""

    def __init__(
        self,
        *,
        connector: Connector,
        identity: UUID,
        role: str,
        size: int,
        settings: Mapping[str, str],
    ) -> None:
        self.connector = connector
        self.settings = settings
        self._identity = identity
        self._role = role
        self._free: deque[Session] = deque()
        self._lent: set[Session] = set()
        self._places = asyncio.Semaphore(size)
        self._closed = False

    @property
    def queries(self) -> Queries:
        return self.connector.queries

    @asynccontextmanager
    async def session(self) -> AsyncGenerator[Session]:
        """Borrow a session. ``StorageUnavailable`` when none is free or can be had in time."""
        try:
            async with asyncio.timeout(self.connector.connect_timeout.total_seconds()):
                await self._places.acquire()
        except TimeoutError as error:
            raise StorageUnavailable(
                "all connections of the pool are in use: raise the pool's size"
            ) from error
        session: Session | None = None
        try:
            session = await self._take()
            self._lent.add(session)
            yield session
        finally:
            if session is not None:
                self._lent.discard(session)
                self._give(session)
            self._places.release()

    async def fetch(
        self,
        name: str,
        *args: object,
        within: timedelta | None = None,
        again: Callable[[], None] | None = None,
        locks: bool = False,
    ) -> Sequence[asyncpg.Record]:
        """Run a query that may be run twice: after a lost connection it is, on another one, and
        ``again`` is called before.

        A server that does not let anybody connect is reported soon, unless the statement had
        been sent before: then it is tried again until the statement's time is up, as is one that
        met a lock. What is refused for its rows comes as the driver's error, and so does a lock
        with ``locks``; all else as StorageUnavailable.
        """
        call = self.queries.call(name, *args)
        return await self._insist(*call, within=within, again=again, locks=locks)

    async def fetch_once(self, name: str, *args: object) -> Sequence[asyncpg.Record]:
        """Run a query that must not be run twice: after a lost connection nobody knows whether it
        was run at all, which is StorageUnavailable like everything else."""
        limit = self.connector.statement_timeout
        call = self.queries.call(name, *args)
        try:
            async with self.session() as session:
                return await self._run_or_end(session, *call, within=limit)
        except (StorageUnavailable, asyncpg.PostgresError, *LOST) as error:
            raise unavailable(error, self.connector.address) from error

    async def search(self, query: str, *args: object) -> Sequence[asyncpg.Record]:
        """As ``fetch``, for a query that was composed of what somebody looks for: it is planned for
        just that, since what is rare is best found by another way than what is common."""
        return await self._insist(query, *args, planned=True)

    async def _insist(
        self,
        query: str,
        *args: object,
        within: timedelta | None = None,
        again: Callable[[], None] | None = None,
        locks: bool = False,
        planned: bool = False,
    ) -> Sequence[asyncpg.Record]:
        limit = within or self.connector.statement_timeout
        give_up = monotonic() + limit.total_seconds()
        delay, sent, knocks = _BACKOFF, False, 0
        while True:
            try:
                async with self.session() as session:
                    sent = True
                    return await self._run_or_end(
                        session, query, *args, within=limit, planned=planned
                    )
            except (StorageUnavailable, *LOST) as error:
                if isinstance(error, asyncpg.InterfaceError) and refused(error):
                    raise
                knocks += not sent
                if knocks >= _KNOCKS or monotonic() + delay > give_up or self._closed:
                    raise unavailable(error, self.connector.address) from error
            except (asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                if refused(error) or (locks and transient(error)):
                    raise
                if not transient(error) or monotonic() + delay > give_up or self._closed:
                    raise unavailable(error, self.connector.address) from error
            if again is not None:
                again()
            await asyncio.sleep(delay * random.uniform(0.5, 1))
            delay = min(delay * 2, _BACKOFF_LIMIT)

    async def _run_or_end(
        self,
        session: Session,
        query: str,
        *args: object,
        within: timedelta,
        planned: bool = False,
    ) -> Sequence[asyncpg.Record]:
        """As ``run``; a session that failed for a reason of its own (its server is a standby by
        now) is not used again."""
        try:
            return await self.run(session, query, *args, within=within, planned=planned)
        except Exception as error:
            if not (refused(error) or transient(error)):
                session.terminate()
            raise

    async def run(
        self,
        session: Session,
        query: str,
        *args: object,
        within: timedelta | None,
        planned: bool = False,
    ) -> Sequence[asyncpg.Record]:
        """Run a query on a session of this pool, under the pool's settings; errors as they come.
        ``planned``: plan it for these arguments."""
        if not (self.connector.pooled or planned):
            return await session.ask(query, *args, within=within)
        # Behind a transaction pooler settings hold for a transaction at most, and an unnamed
        # statement must be parsed and run on one server.
        with session.deadline(within):
            async with session.transaction():
                await self.settle_locally(session, within)
                if planned:
                    names, values = list(PLANNED_ANEW), list(PLANNED_ANEW.values())
                    await session.fetch(self.queries["settle_session"], names, values, True, None)
                return await session.fetch(query, *args)

    async def settle_locally(self, session: Session, within: timedelta | None = None) -> None:
        """Make the pool's settings for a transaction, where they cannot hold for the session."""
        if self.connector.pooled:
            settings = dict(self.settings)
            if within is not None:
                settings.setdefault("statement_timeout", milliseconds(within))
            settle = self.queries["settle_session"]
            await session.fetch(settle, list(settings), list(settings.values()), True, None)

    def serve_transactions_only(self) -> None:
        """From now on expect a transaction pooler: prepare nothing, set nothing for long."""
        self.connector = replace(self.connector, pooled=True)

    async def close(self) -> None:
        self._closed = True
        while self._free:
            await _end(self._free.popleft())
        for session in tuple(self._lent):
            session.terminate()

    async def _take(self) -> Session:
        while self._free:
            session = self._free.pop()
            if not session.is_closed():
                return session
        if self._closed:
            raise StorageUnavailable("the storage is closed; open a new one")
        return await self.connector.open(self._identity, self._role, self.settings)

    def _give(self, session: Session) -> None:
        if session.is_closed():
            return
        if self._closed or session.is_in_transaction():
            session.terminate()
        else:
            self._free.append(session)


async def _end(session: Session) -> None:
    try:
        await session.close(timeout=1)
    except (TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        session.terminate()
