"""PgQueuer: plain jobs, without steps or results.

The driver sees that they are done by polling its log, each 1 ms for one and each 5 ms for many: its
own watcher took longer.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.db import AsyncpgDriver, AsyncpgPoolDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from bench.peers.load import Kind, main

SUCCEEDED = """
    select count(*) from pgqueuer_log
    where job_id between $1 and $2 and status = 'successful'
"""


async def work(variant: str, dsn: str) -> None:
    pool = await asyncpg.create_pool(dsn, min_size=5, max_size=20)
    await Queries(AsyncpgPoolDriver(pool)).install()
    await pool.execute("create table late (seconds float8)")
    queuer = PgQueuer(AsyncpgPoolDriver(pool))
    late: list[float] = []

    @queuer.entrypoint("job")
    async def job(job: Job) -> None:
        pass

    @queuer.entrypoint("sleeper")
    async def sleeper(job: Job) -> None:
        late.append(time.time() - float(job.payload or b"0"))

    @queuer.entrypoint("tell")
    async def tell(job: Job) -> None:
        await pool.execute("insert into late select * from unnest($1::float8[])", late)

    print("READY", dsn, flush=True)
    await queuer.run(batch_size=100)


class Jobs:
    answers = False

    def __init__(self, connection: Any, *, batch: bool) -> None:
        self._connection = connection
        self._queries = Queries(AsyncpgDriver(connection))
        self._batch = batch

    async def run_all(self, kind: Kind, requests: Sequence[Any]) -> Sequence[Any]:
        many = len(requests)
        if self._batch:
            ids = await self._queries.enqueue(["job"] * many, [b"1"] * many, [0] * many)
        else:
            ids = [(await self._queries.enqueue("job", b"1"))[0] for _ in requests]
        await self._succeeded(ids)
        return ids

    async def sleep_all(self, count: int, seconds: float) -> Sequence[float]:
        due = str(time.time() + seconds).encode()
        after = [timedelta(seconds=seconds)] * count
        ids = await self._queries.enqueue(["sleeper"] * count, [due] * count, [0] * count, after)
        await self._succeeded(ids)
        await self._succeeded(await self._queries.enqueue("tell", b""))
        return [row[0] for row in await self._connection.fetch("select seconds from late")]

    async def start_waiting(self) -> Any:
        raise NotImplementedError("jobs await nothing")

    async def resume(self, waiting: Any, value: int) -> Any:
        raise NotImplementedError("jobs await nothing")

    async def _succeeded(self, ids: Sequence[Any]) -> None:
        pause = 0.001 if len(ids) == 1 else 0.005
        numbers = [int(id) for id in ids]
        between = min(numbers), max(numbers)
        while await self._connection.fetchval(SUCCEEDED, *between) < len(numbers):
            await asyncio.sleep(pause)


@asynccontextmanager
async def connect(variant: str, dsn: str) -> AsyncGenerator[Jobs]:
    connection = await asyncpg.connect(dsn)
    yield Jobs(connection, batch=variant == "batch")
    await connection.close()


if __name__ == "__main__":
    main(work, connect)
