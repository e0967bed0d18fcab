"""Procrastinate: plain jobs, without steps or results.

The driver sees that they are done by polling their table, each 1 ms for one and each 5 ms for many.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import procrastinate
import psycopg

from bench.peers.load import Kind, main

DEFERRING = 20
SUCCEEDED = """
    select count(*) from procrastinate_jobs
    where id between %s and %s and status = 'succeeded'
"""
LATE = """
    select extract(epoch from e.at - j.scheduled_at)::float8
    from procrastinate_jobs j join procrastinate_events e on e.job_id = j.id
    where e.type = 'succeeded' and j.id = any(%s)
"""


def application(dsn: str) -> procrastinate.App:
    connector = procrastinate.PsycopgConnector(conninfo=dsn, min_size=4, max_size=DEFERRING)
    app = procrastinate.App(connector=connector)

    @app.task(name="job")
    async def job(number: int) -> int:
        return number

    return app


async def work(variant: str, dsn: str) -> None:
    app = application(dsn)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        print("READY", dsn, flush=True)
        await app.run_worker_async(
            concurrency=100, delete_jobs="never", install_signal_handlers=False
        )


class Procrastinate:
    answers = False

    def __init__(self, app: procrastinate.App, connection: Any, *, batch: bool) -> None:
        self._task = app.tasks["job"]
        self._connection = connection
        self._batch = batch

    async def run_all(self, kind: Kind, requests: Sequence[Any]) -> Sequence[Any]:
        if self._batch:
            ids = await self._task.batch_defer_async(*({"number": each} for each in requests))
        else:
            free = asyncio.Semaphore(DEFERRING)

            async def defer(number: int) -> int:
                async with free:
                    return await self._task.defer_async(number=number)

            ids = await asyncio.gather(*(defer(each) for each in requests))
        await self._succeeded(ids)
        return ids

    async def sleep_all(self, count: int, seconds: float) -> Sequence[float]:
        later = self._task.configure(schedule_in={"seconds": int(seconds)})
        ids = await later.batch_defer_async(*({"number": n} for n in range(count)))
        await self._succeeded(ids)
        rows = await (await self._connection.execute(LATE, [ids])).fetchall()
        return [row[0] for row in rows]

    async def start_waiting(self) -> Any:
        raise NotImplementedError("jobs await nothing")

    async def resume(self, waiting: Any, value: int) -> Any:
        raise NotImplementedError("jobs await nothing")

    async def _succeeded(self, ids: Sequence[int]) -> None:
        pause, between = 0.001 if len(ids) == 1 else 0.005, [min(ids), max(ids)]
        while True:
            found = await (await self._connection.execute(SUCCEEDED, between)).fetchone()
            if found[0] == len(ids):
                return
            await asyncio.sleep(pause)


@asynccontextmanager
async def connect(variant: str, dsn: str) -> AsyncGenerator[Procrastinate]:
    app = application(dsn)
    async with (
        app.open_async(),
        await psycopg.AsyncConnection.connect(dsn, autocommit=True) as connection,
    ):
        yield Procrastinate(app, connection, batch=variant == "batch")


if __name__ == "__main__":
    main(work, connect)
