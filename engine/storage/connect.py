"""Open connections to PostgreSQL with everything the engine needs of a session.

From ``postgres``, which knows the DSNs; on to the pool, the lanes, the doorbell and the registry.
Settings are made by a statement after connecting, since poolers refuse most of them at start-up.
"""

import asyncio
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from uuid import UUID

import asyncpg

from engine.core.errors import ConfigurationError
from engine.storage.outage import Address, unconnected
from engine.storage.queries import Queries
from engine.storage.session import Session

OLDEST_SERVER = 14
OUR_PLANS = {
    "jit": "off",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
"""For sessions that run the engine's own queries. They look rows up by index, one by one, and a
table that was empty when a statement was planned may be full when it runs; planning or compiling
each time costs more than the query."""
PLANNED_ANEW = {"plan_cache_mode": "force_custom_plan"}
"""For a query whose best plan depends on what is looked for."""
_PLAN_LIFETIME = 60
_LENT = (asyncpg.InvalidSQLStatementNameError, asyncpg.DuplicatePreparedStatementError)
_CHECK_INTERVAL = "client_connection_check_interval"


class TransactionPooler(ConfigurationError):
    """Where a direct connection was to be, a pooler lends a server for each transaction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Connector:
    """Opens sessions named ``outlast:<identity>:<role>``: by that name a takeover ends them.

    With ``pooled`` the DSN may lead to a transaction pooler: nothing is prepared or set there, and
    each transaction must set its own time-outs.
    """

    dsn: str = field(repr=False)
    queries: Queries
    statement_timeout: timedelta
    connect_timeout: timedelta
    pooled: bool = False

    @property
    def address(self) -> Address:
        return Address.of(self.dsn)

    async def open(
        self, identity: UUID, role: str, settings: Mapping[str, str] | None = None
    ) -> Session:
        """A new session. ``StorageUnavailable`` when the server cannot be reached or refuses,
        ``ConfigurationError`` when the DSN or the server cannot work at all, of which
        ``TransactionPooler`` is one unless the connector is for one."""
        session: Session | None = None
        try:
            async with asyncio.timeout(self.connect_timeout.total_seconds()):
                session = await self._connect(f"outlast:{identity}:{role}")
                session.keep_alive()
                session.know_arrays()
                self._check_version(session)
                if not self.pooled:
                    await self._settle_unless_lent(session, settings or {}, identity)
        except BaseException as error:
            if session is not None:
                session.terminate()
            if isinstance(error, ConfigurationError) or not isinstance(error, Exception):
                raise
            unconnected(error, self.dsn)
        return session

    async def settle(self, session: Session, settings: Mapping[str, str]) -> None:
        """Make the session's settings, also anew after a ``reset``."""
        await self._set(session, settings, None)

    async def _settle_unless_lent(
        self, session: Session, settings: Mapping[str, str], identity: UUID
    ) -> None:
        """Settle the session; ``TransactionPooler`` when its statements may reach many servers."""
        try:
            if await self._set(session, settings, session.get_server_pid()):
                return
            if not await self._is_lent(session, identity):
                await self._set(session, settings, None)
                return
        except _LENT:
            pass
        raise TransactionPooler(
            f"{self.address} is a transaction pooler: a runner's locks and LISTEN need direct"
            " connections, or a pooler in session mode; set the DSN to the server itself and keep"
            " the pooler for the pool's DSN"
        )

    async def _set(self, session: Session, settings: Mapping[str, str], pid: int | None) -> bool:
        values = _settings(self.statement_timeout) | dict(settings)
        if session.get_server_version().major >= 17:
            values["transaction_timeout"] = "0"
        query = self.queries["settle_session"]
        try:
            made = await session.fetch(query, list(values), list(values.values()), False, pid)
        except asyncpg.InvalidParameterValueError:
            # Servers on some systems cannot watch their client's socket; keepalives remain.
            del values[_CHECK_INTERVAL]
            made = await session.fetch(query, list(values), list(values.values()), False, pid)
        return bool(made)

    async def _is_lent(self, session: Session, identity: UUID) -> bool:
        """Whether a pooler in front of the server gives a session another server from one
        transaction to the next.

        While another session is in a transaction, either that one has the first one's server or
        the first has to take another.
        """
        first = await self._pid(session)
        other = await self._connect(f"outlast:{identity}:probe")
        try:
            async with other.transaction():
                second = await self._pid(other)
                again = await self._pid(session)
        finally:
            other.terminate()
        return second == first or again != first

    async def _pid(self, session: Session) -> int:
        rows = await session.ask(self.queries["backend"], within=self.statement_timeout)
        return int(rows[0]["pid"])

    async def _connect(self, name: str) -> Session:
        return await asyncpg.connect(
            self.dsn,
            connection_class=Session,
            timeout=self.connect_timeout.total_seconds(),
            statement_cache_size=0 if self.pooled else 100,
            max_cached_statement_lifetime=_PLAN_LIFETIME,
            server_settings={"application_name": name},
        )

    def _check_version(self, session: Session) -> None:
        version = session.get_server_version()
        if version.major < OLDEST_SERVER:
            raise ConfigurationError(
                f"the server at {self.address} is PostgreSQL {version.major}:"
                f" the engine needs {OLDEST_SERVER} or newer"
            )


def _settings(statement_timeout: timedelta) -> dict[str, str]:
    """What every direct session sets."""
    values = {
        "statement_timeout": milliseconds(statement_timeout),
        "idle_in_transaction_session_timeout": milliseconds(max(statement_timeout * 6, _MINUTE)),
        "idle_session_timeout": "0",
        "default_transaction_isolation": "read committed",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
        "tcp_user_timeout": "20000",
        _CHECK_INTERVAL: "5000",
    }
    if sys.platform == "win32":
        del values["tcp_user_timeout"]
    return values


_MINUTE = timedelta(minutes=1)


def milliseconds(duration: timedelta) -> str:
    """A duration as PostgreSQL's settings take it."""
    return str(max(1, round(duration.total_seconds() * 1000)))
