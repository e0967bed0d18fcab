"""The application that chaos tests run in processes of its own: ``app runner`` and ``app client``.

Settings come from ``OUTLAST_…`` variables. A runner prints a JSON line whenever what it owns or
holds in memory has changed, and on SIGUSR1. A client reads commands from its input, one JSON object
per line, and answers each with a line that has the same ``id``.
"""

import asyncio
import json
import logging
import os
import random
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import asyncpg
from pydantic import BaseModel

from engine import (
    Client,
    Deferred,
    EngineError,
    Entity,
    ExecutionFailed,
    RetryPolicy,
    Runner,
    Settings,
    Transaction,
    Workflow,
    activity,
    rpc,
    transaction,
)
from engine.storage.connect import Connector
from engine.storage.session import Session

log = logging.getLogger("chaos")

TABLES = """
    create table effects (execution text not null, step text not null);
    create table touched (execution text not null, step text not null, key text not null);
    create table handled (entity text not null, execution text not null);
    create table woken (execution text not null, due timestamptz not null,
                        at timestamptz not null default clock_timestamp());
    create table stalls (name text primary key);
"""
"""What the steps leave behind. No constraint on purpose: what happens twice must show."""


class Job(BaseModel):
    """One execution: ``pause`` is how long its sleep and its slow steps take, in seconds."""

    id: str
    number: int
    pause: float = 0.05


class Outside:
    """What steps write to beside the engine: one connection of the application's own.

    What is written at once shares a statement, so that it is not the application that is measured.
    """

    def __init__(self) -> None:
        self._connection: asyncpg.Connection[Any] | None = None
        self._queue: list[tuple[str, tuple[object, ...], asyncio.Future[None]]] = []
        self._writer: asyncio.Task[None] | None = None

    async def write(self, query: str, *args: object) -> None:
        """At least once: again when the connection was lost, also when nobody waits any more."""
        written = asyncio.get_running_loop().create_future()
        self._queue.append((query, args, written))
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_all())
        await written

    async def _write_all(self) -> None:
        while self._queue:
            queue, self._queue = self._queue, []
            for query in {query for query, _, _ in queue}:
                await self._write(query, [args for each, args, _ in queue if each == query])
            for _, _, written in queue:
                if not written.done():
                    written.set_result(None)
        self._writer = None

    async def _write(self, query: str, rows: list[tuple[object, ...]]) -> None:
        while True:
            try:
                if self._connection is None or self._connection.is_closed():
                    dsn = os.environ["OUTLAST_DSN"]
                    self._connection = await asyncpg.connect(dsn, timeout=3, command_timeout=10)
                await self._connection.executemany(query, rows)
                return
            except Exception as error:  # noqa: BLE001 -- whatever it was, it is written again
                log.info("the application writes again: %r", error)
                await asyncio.sleep(0.05)


async def a_while(longest: float) -> None:
    """Work of this many seconds at most."""
    await asyncio.sleep(random.uniform(0, longest))


class Ledger(Entity):
    """Books amounts; says so in ``handled`` each time it handles a message."""

    def __init__(self, outside: Outside) -> None:
        self.outside = outside

    @rpc
    async def book(self, execution: str, number: int) -> int:
        await self.outside.write("insert into handled values ($1, $2)", self.entity_id, execution)
        await a_while(0.02)
        return number * 3


class Steps(Workflow[Job, int]):
    """What the workflows below have in common."""

    name = "Steps"

    def __init__(self, outside: Outside) -> None:
        self.outside = outside

    @classmethod
    def key(cls, request: Job) -> str:
        return request.id

    @activity(retry=RetryPolicy(attempts=3))
    async def fetch(self, number: int) -> int:
        await self._touch("fetch")
        await a_while(0.3)
        return number + 1

    @activity(retry=RetryPolicy(attempts=3))
    async def pack(self, number: int) -> int:
        await self._touch("pack")
        await a_while(0.3)
        return number * 10

    @activity(retry=RetryPolicy(attempts=3))
    async def linger(self, seconds: float) -> None:
        await self._touch("linger")
        await asyncio.sleep(seconds)
        await self._touch("lingered")

    @transaction(retry=RetryPolicy(attempts=3))
    async def record(self, tx: Transaction, number: int) -> int:
        await tx.execute("insert into effects values ($1, 'record')", self.execution_id)
        await tx.execute("select pg_sleep(random() / 20)")
        return number + 7

    @transaction(retry=RetryPolicy(attempts=3))
    async def again(self, tx: Transaction, number: int) -> int:
        await tx.execute("insert into effects values ($1, 'again')", self.execution_id)
        return number + 1

    @transaction(retry=RetryPolicy(attempts=3))
    async def stall(self, tx: Transaction, seconds: float) -> None:
        """An insert, then a long time with the transaction open; says who does it in ``stalls``."""
        await tx.execute("insert into effects values ($1, 'stall')", self.execution_id)
        name = await tx.fetchval("select current_setting('application_name')")
        await self.outside.write("insert into stalls values ($1) on conflict do nothing", name)
        await asyncio.sleep(seconds)

    async def _touch(self, step: str) -> None:
        await self.outside.write(
            "insert into touched values ($1, $2, $3)",
            self.execution_id,
            step,
            self.idempotency_key,
        )


class Five(Steps):
    """Five steps in a row, one of each kind."""

    async def execute(self, request: Job) -> int:
        fetched = await self.fetch(request.number)
        booked = await self.entity(Ledger, f"l{request.number % 20}").book(request.id, fetched)
        recorded = await self.record(booked)
        await asyncio.sleep(request.pause)
        return await self.pack(recorded)

    @staticmethod
    def result(number: int) -> int:
        return ((number + 1) * 3 + 7) * 10


class Mixed(Steps):
    """A transaction first, then branches that end in any order, a time-out, a transaction last."""

    async def execute(self, request: Job) -> int:
        first = await self.record(request.number)
        async with asyncio.TaskGroup() as group:
            fetched = group.create_task(self.fetch(first))
            group.create_task(asyncio.sleep(request.pause))
            booked = group.create_task(
                self.entity(Ledger, f"m{request.number % 20}").book(request.id, first)
            )
            packed = group.create_task(self.pack(first))
        with suppress(TimeoutError):
            async with asyncio.timeout(request.pause / 2):
                await self.linger(request.pause * 4)
        return await self.again(fetched.result() + booked.result() + packed.result())

    @staticmethod
    def result(number: int) -> int:
        first = number + 7
        return first + 1 + first * 3 + first * 10 + 1


class Sleeper(Steps):
    """Sleeps, then asks the database what time it is."""

    async def execute(self, request: Job) -> int:
        due = self.now() + timedelta(seconds=request.pause)
        await self.sleep(timedelta(seconds=request.pause))
        await self.wake(due.isoformat())
        return request.number

    @activity
    async def wake(self, due: str) -> None:
        await self.outside.write(
            "insert into woken (execution, due) values ($1, $2::text::timestamptz)",
            self.execution_id,
            due,
        )


class Stalls(Steps):
    """A short activity, a transaction that stays open for ``pause`` seconds, an activity."""

    async def execute(self, request: Job) -> int:
        fetched = await self.fetch(request.number)
        await self.stall(request.pause)
        return await self.pack(fetched)

    @staticmethod
    def result(number: int) -> int:
        return (number + 1) * 10


class Lingers(Steps):
    """A transaction, an activity that takes ``pause`` seconds, a transaction."""

    async def execute(self, request: Job) -> int:
        recorded = await self.record(request.number)
        await self.linger(request.pause)
        return await self.again(recorded)

    @staticmethod
    def result(number: int) -> int:
        return number + 8


class Approval(Steps):
    """Waits to be told."""

    approved = Deferred(int)

    async def execute(self, request: Job) -> int:
        return request.number + await self.approved.wait()


WORKFLOWS: dict[str, type[Steps]] = {
    cls.__name__: cls for cls in (Five, Mixed, Sleeper, Stalls, Lingers, Approval)
}


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)  # noqa: T201 the test reads it


class Statements:
    """How many statements the engine has sent, over all its sessions."""

    def __init__(self) -> None:
        self.sent = 0
        opened = Connector.open

        async def counted(connector: Connector, *args: Any) -> Session:
            session = await opened(connector, *args)
            session.add_query_logger(self.note)
            return session

        Connector.open = counted  # type: ignore[method-assign]

    def note(self, _: object) -> None:
        self.sent += 1


async def run() -> None:
    statements = Statements()
    outside = Outside()
    runner = Runner(Settings()).register(
        Ledger(outside), *(cls(outside) for cls in WORKFLOWS.values())
    )
    async with asyncio.TaskGroup() as group:
        telling = group.create_task(tell(runner, statements))
        await runner.run()
        telling.cancel()


async def tell(runner: Runner, statements: Statements) -> None:
    asked = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, asked.set)
    last: object = None
    while True:
        now = {
            "runner": None if runner.id is None else str(runner.id),
            "owned": len(runner.epochs),
            "resident": runner.resident,
        }
        if now != last or asked.is_set():
            asked.clear()
            say(**now, statements=statements.sent)
            last = now
        await asyncio.sleep(0.05)


async def serve_client() -> None:
    async with Client(Settings()) as client:
        say(ready=True)
        await answer_commands(lambda command: COMMANDS[command["do"]](client, command))


async def answer_commands(obey: Callable[[dict[str, Any]], Awaitable[object]]) -> None:
    """Answer commands until the input ends; they run side by side."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    async with asyncio.TaskGroup() as group:
        async for line in lines:
            group.create_task(answer(obey, json.loads(line)))


async def answer(
    obey: Callable[[dict[str, Any]], Awaitable[object]], command: dict[str, Any]
) -> None:
    try:
        result = await obey(command)
    except (EngineError, TimeoutError, ExecutionFailed) as error:
        say(id=command["id"], error=f"{type(error).__name__}: {error}")
    else:
        say(id=command["id"], result=result)


async def start(client: Client, command: dict[str, Any]) -> object:
    execution = await client.start(
        WORKFLOWS[command["workflow"]], Job.model_validate(command["job"])
    )
    return execution.request_id


async def join(client: Client, command: dict[str, Any]) -> object:
    """Any number of waiters at once; all their results."""
    execution = client.execution(WORKFLOWS[command["workflow"]], command["execution"])
    limit = timedelta(seconds=command.get("seconds", 60))
    return await asyncio.gather(*(execution.join(limit) for _ in range(command.get("waiters", 1))))


async def poll(client: Client, command: dict[str, Any]) -> object:
    execution = client.execution(WORKFLOWS[command["workflow"]], command["execution"])
    outcome = await execution.poll()
    return [type(outcome).__name__, getattr(outcome, "value", None)]


async def resolve(client: Client, command: dict[str, Any]) -> object:
    execution = client.execution(Approval, command["execution"])
    return await execution.resolve(Approval.approved, command["value"])


COMMANDS: dict[str, Callable[[Client, dict[str, Any]], Awaitable[object]]] = {
    "start": start,
    "join": join,
    "poll": poll,
    "resolve": resolve,
}


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(run() if sys.argv[1] == "runner" else serve_client())
