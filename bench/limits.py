"""L3 and L6: what W3 and W6 would take if their statements were plain and the engine did nothing.

Two processes hand a row to and fro: the driver inserts it and notifies, the worker reads it, writes
its result and notifies, the driver reads that. Each write is durable before anybody is told of it.
"""

import asyncio
import os
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from time import perf_counter

import asyncpg

from bench.alone import RESOLVED, STARTED, UNTIL_IT_WAITS
from bench.place import WARM_UP, Options
from bench.process import driver_process, within
from bench.results import Results
from bench.server import Connection, Server

TABLE = """
    create table handed (id int primary key, request int not null, result int);
    create index on handed (id) where result is null
"""
ASK = "insert into handed (id, request) values ($1, $1)"
READ = "select id, request from handed where result is null"
ANSWER = "update handed set result = $2 where id = $1"
RESULT = "select result from handed where id = $1"
WORKER, DRIVER = "limit_worker", "limit_driver"


class Bell:
    """Notifications of one channel, and the connection to ring others by."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rung = asyncio.Event()

    async def listen(self, channel: str) -> None:
        await self._connection.add_listener(channel, self._hear)

    def _hear(self, *_: object) -> None:
        self._rung.set()

    async def heard(self) -> None:
        await self._rung.wait()
        self._rung.clear()

    async def ring(self, channel: str) -> None:
        await self._connection.fetchval("select pg_notify($1, '')", channel)


@asynccontextmanager
async def bell(dsn: str, channel: str) -> AsyncGenerator[Bell]:
    connection = await asyncpg.connect(dsn)
    try:
        await (own := Bell(connection)).listen(channel)
        yield own
    finally:
        await connection.close()


async def limits(server: Server, results: Results, options: Options) -> None:
    """One after the other, and each after a rest."""
    async with (
        server.database(migrated=False) as database,
        database.connected() as connection,
        bell(database.dsn, DRIVER) as own,
    ):
        await connection.execute(TABLE)

        async def hand_over(count: int, *, rest: float) -> list[float]:
            taken: list[float] = []
            first: int = await connection.fetchval("select count(*) from handed")
            for id in range(first, first + count):
                if rest:
                    await asyncio.sleep(rest)
                began = perf_counter()
                await connection.fetchval(ASK, id)
                await own.ring(WORKER)
                await within(30, own.heard(), what="an answer")
                if await connection.fetchval(RESULT, id) != id:
                    raise AssertionError(f"{id} came back as another")
                taken.append(perf_counter() - began)
            return taken

        async with driver_process(database, module="bench.limits"):
            await hand_over(WARM_UP, rest=0)
            alone = await hand_over(options.sized(STARTED), rest=0)
            results.add_durations("L3", "no engine", "there and back", alone)
            rested = await hand_over(options.sized(RESOLVED), rest=UNTIL_IT_WAITS)
            results.add_durations("L6", "no engine", "there and back", rested)


async def work(dsn: str) -> None:
    """Answer whatever has no answer, for as long as it is let."""
    connection = await asyncpg.connect(dsn)
    async with bell(dsn, WORKER) as own:
        print("READY", flush=True)
        while True:
            await own.heard()
            for id, request in await connection.fetch(READ):
                await connection.fetchval(ANSWER, id, request)
                await own.ring(DRIVER)


if __name__ == "__main__":
    from cli.serve import calm_collector, fastest_loop

    calm_collector()
    with asyncio.Runner(loop_factory=fastest_loop()) as loop:
        loop.run(work(os.environ["OUTLAST_DSN"]))
