"""The PostgreSQL that is measured on: a durable one that runs for this alone, and its databases."""

import asyncio
import os
import secrets
import tempfile
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import TypeAlias
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from engine.embedded import EmbeddedPostgres
from engine.storage.migrate import migrate

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
SETTINGS = {"shared_buffers": "512MB", "shared_preload_libraries": "pg_stat_statements"}
"""What the server has that initdb does not give it; ``docs/performance.md`` names them."""
DURABLE = ("fsync", "synchronous_commit", "full_page_writes")
COUNTED = """
    select pg_snapshot_xmax(pg_current_snapshot())::text::bigint as commits,
        (pg_current_wal_insert_lsn() - '0/0')::bigint as wal
"""
STATEMENTS = """
    select coalesce(sum(calls), 0)::bigint from pg_stat_statements
    where dbid = (select oid from pg_database where datname = $1)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """Since the server started: its transactions that wrote, its bytes of WAL, and the statements
    of one database, BEGIN and COMMIT among them."""

    commits: int
    wal: int
    statements: int


class Database:
    """One of our own."""

    def __init__(self, server: "Server", *, dsn: str, name: str) -> None:
        self.server = server
        self.dsn = dsn
        self.name = name

    @asynccontextmanager
    async def connected(self) -> AsyncGenerator[Connection]:
        connection = await asyncpg.connect(self.dsn)
        try:
            yield connection
        finally:
            await connection.close()

    async def counted(self) -> Counted:
        """Asked through another database, so that asking is not counted."""
        admin = self.server.admin
        statements = await admin.fetchval(STATEMENTS, self.name)
        row = await admin.fetchrow(COUNTED)
        assert row is not None
        return Counted(commits=row["commits"], wal=row["wal"], statements=statements)

    async def commit_seconds(self, count: int = 500) -> list[float]:
        """How long inserts of one row take, each with its commit: a measure of the machine."""
        taken: list[float] = []
        async with self.connected() as connection:
            await connection.execute("create table calibration (value int)")
            for value in range(count):
                began = perf_counter()
                await connection.execute("insert into calibration values ($1)", value)
                taken.append(perf_counter() - began)
        return taken


class Server:
    """A durable server; ``postmaster`` is its pid, or None where it runs on another machine."""

    def __init__(self, admin: Connection, *, dsn: str, postmaster: int | None) -> None:
        self.admin = admin
        self.dsn = dsn
        self.postmaster = postmaster

    async def version(self) -> str:
        return str(await self.admin.fetchval("show server_version")).split(" ")[0]

    @asynccontextmanager
    async def database(self, *, migrated: bool = True) -> AsyncGenerator[Database]:
        """A new one, which is dropped in the end."""
        name = f"outlast_bench_{secrets.token_hex(3)}"
        await self.admin.execute(f"create database {name}")
        try:
            own = urlunsplit(urlsplit(self.dsn)._replace(path=f"/{name}"))
            if migrated:
                await migrate(own)
            yield Database(self, dsn=own, name=name)
        finally:
            await self.admin.execute(f"drop database {name} with (force)")


@asynccontextmanager
async def open_server() -> AsyncGenerator[Server]:
    """That of ``OUTLAST_DSN``, which has to have pg_stat_statements, else a new one."""
    if dsn := os.environ.get("OUTLAST_DSN"):
        async with _checked(dsn) as server:
            yield server
        return
    with _new_home() as home:
        embedded = EmbeddedPostgres(home)
        async with embedded:
            await _configure(embedded.dsn)
        await _ended(embedded)
        try:
            async with embedded, _checked(embedded.dsn) as server:
                yield server
        finally:
            await _ended(embedded)


@contextmanager
def _new_home() -> Generator[Path]:
    with tempfile.TemporaryDirectory(prefix="outlast-project-", ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o755)  # as root, the server has another account
        yield Path(path)


async def _configure(dsn: str) -> None:
    admin = await asyncpg.connect(dsn)
    try:
        for name, value in SETTINGS.items():
            await admin.execute(f"alter system set {name} = '{value}'")
    finally:
        await admin.close()


async def _ended(embedded: EmbeddedPostgres) -> None:
    """Wait until the server has written its last, which it does when nobody uses it."""
    pid = embedded.home / "data/postmaster.pid"
    async with asyncio.timeout(60):
        while await asyncio.to_thread(pid.exists):  # noqa: ASYNC110 it tells nobody
            await asyncio.sleep(0.1)


@asynccontextmanager
async def _checked(dsn: str) -> AsyncGenerator[Server]:
    admin = await asyncpg.connect(dsn)
    try:
        for setting in DURABLE:
            if await admin.fetchval(f"show {setting}") != "on":
                raise SystemExit(f"{setting} is off on this server: only durable ones are measured")
        if "pg_stat_statements" not in await admin.fetchval("show shared_preload_libraries"):
            raise SystemExit(
                "this server does not count statements: set shared_preload_libraries to"
                " 'pg_stat_statements' and restart it, or unset OUTLAST_DSN"
            )
        await admin.execute("create extension if not exists pg_stat_statements")
        backend = await admin.fetchval("select pg_backend_pid()")
        yield Server(admin, dsn=dsn, postmaster=_postmaster(backend))
    finally:
        await admin.close()


def _postmaster(backend: int) -> int | None:
    """The parent of a backend, if it runs here."""
    try:
        name, rest = Path(f"/proc/{backend}/stat").read_text().rsplit(")", 1)
    except OSError:
        return None
    return int(rest.split()[1]) if "(postgres" in name else None
