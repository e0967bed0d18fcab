"""A queue in processes of its own: ``queue_app runner``. Each run of an item leaves a row behind:
who ran it, from when, until when. See ``tests.chaos.app`` for what a process says."""

import asyncio
import logging
import os

import asyncpg

from engine import Queue, Rate, Runner, Settings
from tests.chaos.app import Statements, tell

TABLES = """
    create table runs (
        id bigint generated always as identity, item text not null, key text not null,
        pid int not null, began timestamptz not null default clock_timestamp(), ended timestamptz
    );
"""


BEGIN = "insert into runs (item, key, pid) values ($1, $2, $3) returning id"


class Limited(Queue[str, str]):
    """Items are named by their keys: ``a/1``."""

    concurrency = 6
    per_key = 2
    per_runner = 4
    rate = Rate(50, burst=10)

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.pool: asyncpg.Pool | None = None

    @classmethod
    def key(cls, item: str) -> str:
        return item.partition("/")[0]

    async def process(self, item: str) -> str:
        pool = await self.outside()
        run = await pool.fetchval(BEGIN, item, self.key(item), os.getpid())
        await asyncio.sleep(0.05)
        await pool.execute("update runs set ended = clock_timestamp() where id = $1", run)
        return item.upper()

    async def outside(self) -> asyncpg.Pool:
        if self.pool is None:
            self.pool = await asyncpg.create_pool(self.dsn, min_size=1, max_size=2)
        return self.pool


async def run() -> None:
    settings = Settings()
    runner = Runner(settings).register(Limited(settings.database()))
    async with asyncio.TaskGroup() as group:
        telling = group.create_task(tell(runner, Statements()))
        await runner.run()
        telling.cancel()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(run())
