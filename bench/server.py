"""The database that is measured on, and how many transactions it has seen."""

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from engine.embedded import EmbeddedPostgres
from engine.storage.migrate import migrate

# A session publishes its counters at the end of a transaction, at most once a second, and when it
# has been idle for ten.
PUBLISHED = 11.0


class Server:
    """One database of our own on a durable server."""

    def __init__(self, admin: asyncpg.Connection, *, dsn: str, name: str) -> None:
        self.dsn = dsn
        self._admin = admin
        self._name = name

    async def version(self) -> str:
        return str(await self._admin.fetchval("show server_version")).split(" ")[0]

    async def transactions(self) -> int:
        """How many transactions there were. Each of the engine's hot statements is one; waits
        until idle sessions have published theirs."""
        await asyncio.sleep(PUBLISHED)
        return await self.published()

    async def published(self) -> int:
        counted = "select xact_commit + xact_rollback from pg_stat_database where datname = $1"
        return int(await self._admin.fetchval(counted, self._name))

    async def commit_seconds(self, count: int = 500) -> list[float]:
        """How long inserts of one row take, each with its commit: a measure of the machine."""
        connection = await asyncpg.connect(self.dsn)
        try:
            await connection.execute("create table if not exists calibration (value int)")
            taken: list[float] = []
            for value in range(count):
                began = perf_counter()
                await connection.execute("insert into calibration values ($1)", value)
                taken.append(perf_counter() - began)
            return taken
        finally:
            await connection.close()


@asynccontextmanager
async def open_server() -> AsyncGenerator[Server]:
    """A new, migrated database on the server of ``OUTLAST_DSN``, else on an embedded one."""
    if dsn := os.environ.get("OUTLAST_DSN"):
        async with _database(dsn) as server:
            yield server
    else:
        with EmbeddedPostgres(Path(__file__).parents[1]) as embedded:
            async with _database(embedded.dsn) as server:
                yield server


@asynccontextmanager
async def _database(dsn: str) -> AsyncGenerator[Server]:
    name = f"outlast_bench_{secrets.token_hex(3)}"
    admin = await asyncpg.connect(dsn)
    try:
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            if await admin.fetchval(f"show {setting}") != "on":
                raise SystemExit(f"{setting} is off on this server: only durable ones are measured")
        await admin.execute(f"create database {name}")
        try:
            own = urlunsplit(urlsplit(dsn)._replace(path=f"/{name}"))
            await migrate(own)
            yield Server(admin, dsn=own, name=name)
        finally:
            await admin.execute(f"drop database {name} with (force)")
    finally:
        await admin.close()
