"""Harm that other sessions of a server do, each within a ``with`` block and undone after it, also
when the server was ended and started again meanwhile.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import asyncpg

from engine.storage.outage import LOST
from tests.eventually import eventually

TERMINATE = """
    select count(pg_terminate_backend(pid)) from pg_stat_activity
    where application_name like $1 and datname = current_database()
"""
"""Of the sessions whose name is like this."""
TABLES = [
    *("dedup", "entity_states", "envelopes", "executions", "inbox", "journal"),
    *("post", "replies", "runners", "shards", "waiters"),
]
"""Tables of the engine that others lock, or whose statements fail."""
LOCKS = ["for update", "share row exclusive", "access exclusive"]
MISHAPS = ["40001", "40P01", "55P03", "57014", "53100", "53200", "58030", "XX000"]
"""Serialization, deadlock, lock not available, cancelled, disk full, memory, I/O, internal."""
SETTINGS = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "statement_timeout": "1ms",
    "lock_timeout": "1ms",
    "deadlock_timeout": "10ms",
    "idle_in_transaction_session_timeout": "1ms",
    "idle_session_timeout": "20ms",
    "transaction_timeout": "20ms",
}
"""What an administrator may set for a database, or a role."""
_OURS = {
    "default_transaction_read_only": "off",
    "statement_timeout": "0",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
}
_ENDS_ALL = """
    select count(pg_terminate_backend(pid)) from pg_stat_activity
    where datname = current_database() and pid <> pg_backend_pid()
        and backend_type = 'client backend'
"""
_TRIGGERS = """
create table mishaps (code text not null, share float not null, only_in text);
create function mishap() returns trigger language plpgsql as $$
declare
    code text;
begin
    select m.code into code from mishaps m
    where random() < m.share and coalesce(m.only_in, tg_table_name) = tg_table_name limit 1;
    if code is not null then
        raise exception 'a mishap in %', tg_table_name using errcode = code;
    end if;
    return null;
end $$;
"""


async def install_mishaps(database: "asyncpg.Pool[Any]") -> None:
    """Let statements that write the engine's tables fail whenever ``mishaps`` says so."""
    triggers = (
        f"create trigger mishap before insert or update or delete on engine.{table}"
        " for each statement execute function mishap();"
        for table in TABLES
    )
    await database.execute(_TRIGGERS + "\n".join(triggers))


@asynccontextmanager
async def mishaps(
    dsn: str, code: str, share: float, *, table: str | None = None
) -> AsyncGenerator[None]:
    """This share of the statements that write the engine's tables, or one of them, fails."""
    insert = "insert into mishaps values ($1, $2, $3)"
    await _tell(dsn, lambda session: session.execute(insert, code, share, table))
    try:
        yield
    finally:
        await _insist(
            dsn, lambda session: session.execute("delete from mishaps where code = $1", code)
        )


@asynccontextmanager
async def connections_taken(dsn: str) -> AsyncGenerator[None]:
    """All connections that the server has left, and each that becomes free."""
    taken: list[asyncpg.Connection[Any]] = []
    full = asyncio.Event()

    async def take() -> None:
        while True:
            try:
                taken.append(await asyncpg.connect(dsn, timeout=5))
            except (asyncpg.PostgresError, *LOST):
                full.set()
                await asyncio.sleep(0.01)

    taking = asyncio.create_task(take())
    try:
        await full.wait()
        yield
    finally:
        taking.cancel()
        for session in taken:
            session.terminate()


@asynccontextmanager
async def locked(dsn: str, table: str, lock: str) -> AsyncGenerator[None]:
    """A transaction that holds a lock: on all rows ``for update``, or in some mode on the table."""
    async with _session(dsn) as session:
        await session.execute("begin; set local lock_timeout = '2s'")
        if lock == "for update":
            await session.execute(f"select from {table} for update")
        else:
            await session.execute(f"lock table {table} in {lock} mode")
        yield


@asynccontextmanager
async def setting(dsn: str, name: str, value: str) -> AsyncGenerator[None]:
    """A setting of the database, which all sessions get: they are ended, and come again."""

    async def change(session: "asyncpg.Connection[Any]", change: str) -> None:
        query = f"select format('alter database %I {change}', current_database(), $1::text)"
        await session.execute(await session.fetchval(query, name))
        for _ in range(2):  # one that was about to begin is not seen yet
            await session.execute(_ENDS_ALL)
            await asyncio.sleep(0.1)

    await _tell(dsn, lambda session: change(session, f"set %I = ''{value}''"))
    try:
        yield
    finally:
        await _insist(dsn, lambda session: change(session, "reset %I"))


@asynccontextmanager
async def notifications_stuck(dsn: str, *, at_most: int = 1000) -> AsyncGenerator[bool]:
    """A listener that is idle in a transaction, so that the queue of notifications only grows;
    whether it is full."""
    async with _session(dsn) as idle, _session(dsn) as stuffer:
        await idle.execute("listen stuffing")
        await idle.execute("begin; select 1")
        full = False
        for _ in range(at_most):
            try:
                await stuffer.execute("select pg_notify('stuffing', repeat('x', 7900))")
            except asyncpg.ProgramLimitExceededError:
                full = True
                break
        yield full


async def unhurried(dsn: str) -> dict[str, str]:
    """What the test's own sessions are opened with, so that no setting is for them."""
    async with _session(dsn) as session:
        known = "select true from pg_settings where name = 'transaction_timeout'"
        return _OURS | ({"transaction_timeout": "0"} if await session.fetchval(known) else {})


@asynccontextmanager
async def _session(dsn: str) -> AsyncGenerator["asyncpg.Connection[Any]"]:
    session = await asyncpg.connect(dsn, timeout=5, server_settings=_OURS)
    try:
        yield session
    finally:
        session.terminate()


async def _tell(dsn: str, do: "Callable[[asyncpg.Connection[Any]], Awaitable[object]]") -> None:
    async with _session(dsn) as session:
        await do(session)


async def _insist(dsn: str, do: "Callable[[asyncpg.Connection[Any]], Awaitable[object]]") -> None:
    """Do it as soon as the server lets anybody in."""

    async def done() -> bool:
        with suppress(asyncpg.PostgresError, *LOST):
            await _tell(dsn, do)
            return True
        return False

    await asyncio.shield(eventually(done, timeout=60, every=0.1))
