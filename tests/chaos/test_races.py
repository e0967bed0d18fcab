"""Moments that a process has to be unlucky to meet, brought about on purpose."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from engine import (
    Client,
    Deferred,
    Runner,
    Settings,
    StorageUnavailable,
    Transaction,
    Workflow,
    transaction,
)
from engine.core.clock import Clock
from engine.core.ids import MachineLease, Snowflake
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import LoadedExecution
from tests.eventually import eventually

LIMIT = timedelta(seconds=20)
TERMINATE = """
    select count(pg_terminate_backend(pid)) from pg_stat_activity
    where application_name like $1 and datname = current_database()
"""


@pytest.fixture
async def sql(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


class Books(Workflow[int, int]):
    """A transaction whose commit takes a while, beside a timer that comes due meanwhile."""

    async def execute(self, request: int) -> int:
        booked, _ = await asyncio.gather(self.book(request), asyncio.sleep(0.3))
        return booked

    @transaction
    async def book(self, tx: Transaction, n: int) -> int:
        await tx.execute("insert into slow values ($1)", n)
        return n


class Waits(Workflow[int, int]):
    answer = Deferred(int)

    async def execute(self, request: int) -> int:
        return request + await self.answer.wait()


async def test_a_timer_that_comes_due_during_a_commit_waits_for_it_quietly(
    dsn: str, sql: asyncpg.Connection
) -> None:
    await sql.execute("""
        create table slow (n int);
        create function sleep() returns trigger language plpgsql as $$
            begin perform pg_sleep(2); return null; end $$;
        create constraint trigger slow after insert on slow
        deferrable initially deferred for each row execute function sleep();
    """)
    async with Runner(Settings(dsn=dsn)).register(Books()) as runner:
        execution = await runner.client.start(Books, 7)
        await asyncio.sleep(1)  # the commit is under way, and the timer is due
        before = time.process_time()
        await asyncio.sleep(0.7)
        assert time.process_time() - before < 0.35
        assert await execution.join(LIMIT) == 7


class Gate(PostgresStorage):
    """Holds back what has been loaded; counts leases."""

    opened: asyncio.Event
    loads: list[Sequence[Snowflake]]
    leases: int

    async def load(self, executions: Sequence[Snowflake]) -> Sequence[LoadedExecution]:
        loaded = await super().load(executions)
        self.loads.append(executions)
        await self.opened.wait()
        return loaded

    async def lease_machine(self, lease: MachineLease | None) -> MachineLease:
        self.leases += 1
        return await super().lease_machine(lease)


def gates(dsn: str, made: list[Gate]) -> Callable[[UUID | None, Clock], Gate]:
    def make(identity: UUID | None, _: Clock) -> Gate:
        gate = Gate(dsn, identity=identity)
        gate.opened, gate.loads, gate.leases = asyncio.Event(), [], 0
        made.append(gate)
        return gate

    return make


async def test_what_was_loaded_before_an_epoch_began_is_loaded_again(
    dsn: str, sql: asyncpg.Connection
) -> None:
    made: list[Gate] = []
    settings = Settings(dsn=dsn, suspend_after=0.1)
    async with Runner(settings, open_storage=gates(dsn, made)).register(Waits()) as runner:
        execution = await runner.client.start(Waits, 1)
        await eventually(lambda: runner.resident == 1)
        await eventually(lambda: runner.resident == 0)
        assert await execution.resolve(Waits.answer, 2)
        gate = made[-1]
        await eventually(lambda: gate.loads)
        shard = (await execution.describe()).shard
        before = runner.epochs[shard]
        assert await sql.fetchval(TERMINATE, f"outlast:{runner.id}:lane%") == 2
        await eventually(lambda: runner.epochs.get(shard, 0) > before)
        await asyncio.sleep(0.3)  # the new epoch's first sweep has found the row again
        gate.opened.set()
        assert await execution.join(LIMIT) == 3
        assert gate.loads == [[execution.request_id]] * 2


async def test_many_first_requests_at_once_lease_one_machine_id(dsn: str) -> None:
    made: list[Gate] = []
    async with Runner(Settings(dsn=dsn), open_storage=gates(dsn, made)).register(Waits()) as runner:
        await asyncio.gather(*(runner.client.start(Waits, n) for n in range(200)))
    assert [gate.leases for gate in made] == [1, 1]


async def test_nobody_waits_for_a_reply_on_a_closed_client(dsn: str) -> None:
    async with Client(Settings(dsn=dsn)) as client:
        execution = await client.start(Waits, 1)
    with pytest.raises(StorageUnavailable, match="closed"):
        await execution.join(timedelta(seconds=5))


async def test_a_ring_is_heard_although_its_connection_was_lost(
    dsn: str, sql: asyncpg.Connection
) -> None:
    """Without it the runner would find the execution at its next poll only."""
    settings = Settings(dsn=dsn, poll_interval=60, suspend_after=60)

    async def terminated() -> bool:
        return await sql.fetchval(TERMINATE, "outlast:%:ringer") >= 1

    async with (
        Runner(settings).register(Waits()) as runner,
        Client(settings) as client,
    ):
        await eventually(lambda: len(runner.epochs) == 300)
        for number in range(1, 6):
            await client.start(Waits, number)
            await eventually(lambda n=number: runner.resident == n, timeout=5)
            await eventually(terminated)
