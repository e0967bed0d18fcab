"""Two servers of a test's own, of which the second is a streaming standby of the first."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg

from engine.embedded import EmbeddedPostgres
from engine.server_home import ServerHome
from tests.chaos.proxy import Proxy, proxy
from tests.eventually import eventually

WAITS = "alter system set synchronous_standby_names = '*'"
STREAMS = "select sync_state = $1 from pg_stat_replication"

_NOBODY = 1
"""No server is at this port."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """DSNs of the maintenance databases, and the link between the two."""

    primary: str
    standby: str
    replication: Proxy

    async def stream(self, *, synchronous: bool) -> None:
        """Wait until the standby follows. ``synchronous``: from now on no commit is acknowledged
        before it has it."""
        connection = await asyncpg.connect(self.primary)
        if synchronous:
            await connection.execute(WAITS)
            await connection.execute("select pg_reload_conf()")
        state = "sync" if synchronous else "async"
        await eventually(lambda: connection.fetchval(STREAMS, state))
        await connection.close()

    async def promote(self) -> None:
        """The standby is a primary now, whatever becomes of the other."""
        self.replication.server_port = _NOBODY
        for link in self.replication.links:
            link.cut()
        connection = await asyncpg.connect(self.standby)
        assert await connection.fetchval("select pg_promote()")
        await connection.close()


@asynccontextmanager
async def pair() -> AsyncIterator[Pair]:
    with _project() as first, _project() as second:
        async with (
            EmbeddedPostgres(first, durable=False) as primary,
            proxy(port_of(primary.dsn)) as (replication, port),
        ):
            await asyncio.to_thread(_copy, second, f"postgresql://postgres@127.0.0.1:{port}")
            async with EmbeddedPostgres(second, durable=False) as standby:
                yield Pair(primary=primary.dsn, standby=standby.dsn, replication=replication)


def port_of(dsn: str) -> int:
    port = urlsplit(dsn).port
    assert port is not None
    return port


@contextmanager
def _project() -> Iterator[Path]:
    prefix = "outlast-project-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o755)
        yield Path(path)


def _copy(project: Path, primary: str) -> None:
    """Where a server of this project looks for its data."""
    place = ServerHome(project, variant="-fast")
    if not place.run("test", "-x", place.programs / "pg_basebackup"):
        place.copy_programs()
    backup = place.programs / "pg_basebackup"
    made = place.run(backup, "-d", primary, "-D", "data", "-R", "-c", "fast", "--no-sync")
    assert made, place.complaint
