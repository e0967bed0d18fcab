"""W12: whether throughput stays the same with millions of executions that have finished, and
with a transaction that is held open."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from time import perf_counter

from bench.driver import Keys, run_many, run_one
from bench.meter import Meter
from bench.place import Options, settings_of, settled_in
from bench.process import runner_process
from bench.results import Results, percentile
from bench.server import Database, Server
from engine import Client

FINISHED = (0, 1_000_000)
FULL_FINISHED = (0, 1_000_000, 10_000_000)
BATCH = 500_000
ROUNDS = 7
WORKFLOWS, AT_ONCE = 4000, 2000
HELD_SECONDS, FULL_HELD_SECONDS = 60.0, 300.0
OLDER = 1 << 22
"""A millisecond of request ids."""
Round = dict[str, float]
"""The rate of a round, and what each workflow of it cost."""
COPIES = (
    """
    insert into engine.dedup (key, request_id)
    select d.key || '-' || n, d.request_id - n * $3
    from engine.dedup d, generate_series($1::bigint, $2::bigint) n where d.key like '%template'
    """,
    """
    insert into engine.envelopes (
        request_id, group_id, shard, entity_type, entity_id, tag, uninterruptible, key, headers,
        payload
    )
    select
        e.request_id - n * $3, e.group_id, n % 300, e.entity_type, e.entity_id || '-' || n, e.tag,
        e.uninterruptible, e.key || '-' || n, e.headers, e.payload
    from engine.envelopes e, generate_series($1::bigint, $2::bigint) n
    where e.entity_id = 'template'
    """,
    """
    insert into engine.replies (request_id, sequence, kind, payload)
    select r.request_id - n * $3, r.sequence, r.kind, r.payload
    from engine.replies r join engine.executions x using (request_id),
        generate_series($1::bigint, $2::bigint) n
    where x.execution_id = 'template'
    """,
    """
    insert into engine.journal (
        execution, run, position, kind, outcome, attempt, ordinal, digest, source, at, started_at,
        due_at, name, payload
    )
    select
        j.execution - n * $3, j.run, j.position, j.kind, j.outcome, j.attempt, j.ordinal, j.digest,
        j.source, j.at, j.started_at, j.due_at, j.name, j.payload
    from engine.journal j join engine.executions x on x.request_id = j.execution,
        generate_series($1::bigint, $2::bigint) n
    where x.execution_id = 'template'
    """,
    """
    insert into engine.executions (
        request_id, workflow, execution_id, group_id, shard, status, run, version, created_at,
        started_at, finished_at
    )
    select
        x.request_id - n * $3, x.workflow, x.execution_id || '-' || n, x.group_id, n % 300,
        x.status, x.run, x.version, x.created_at, x.started_at, x.finished_at
    from engine.executions x, generate_series($1::bigint, $2::bigint) n
    where x.execution_id = 'template'
    """,
)


async def past(server: Server, results: Results, options: Options) -> None:
    """Databases that differ in their past alone take turns."""
    sizes = [
        options.sized(size) if size else 0 for size in (FULL_FINISHED if options.full else FINISHED)
    ]
    async with AsyncExitStack() as stack:
        rounds: dict[int, list[Round]] = {}
        served: dict[int, _Served] = {}
        for size in sizes:
            database = await stack.enter_async_context(server.database())
            served[size] = await stack.enter_async_context(_Served(database))
            await served[size].fill(size)
            await served[size].round()
            rounds[size] = []
        for nth in range(ROUNDS):
            for size in sizes if nth % 2 else sizes[::-1]:
                rounds[size].append(await served[size].round())
        for size in sizes:
            _add(results, f"{size:,} finished", rounds[size], beside=rounds[0])
        await _held(served[sizes[0]], results, options)


async def _held(served: "_Served", results: Results, options: Options) -> None:
    """Nothing is vacuumed away while somebody's old snapshot may see it."""
    seconds = (FULL_HELD_SECONDS if options.full else HELD_SECONDS) * min(1.0, options.scale)
    before = [await served.round() for _ in range(ROUNDS)]
    rounds: list[Round] = []
    async with (
        served.database.connected() as connection,
        connection.transaction(isolation="repeatable_read"),
    ):
        await connection.fetchval("select pg_current_xact_id()")
        began = perf_counter()
        while perf_counter() - began < seconds:
            rounds.append(await served.round())
            await asyncio.sleep(0.2)
    done = len(rounds) * WORKFLOWS
    variant = f"a transaction held for {seconds:.0f} s"
    _add(results, variant, rounds[-ROUNDS:], beside=before, since_then=done)


def _add(
    results: Results, variant: str, rounds: Sequence[Round], *, beside: Sequence[Round], **more: int
) -> None:
    """The median of rounds, and what shares it has of the rate and the processor time of others:
    the second hardly depends on what else the machine does."""
    mine, other = _medians(rounds), _medians(beside)
    rates = [each["rate"] for each in rounds]
    results.add(
        "W12",
        variant,
        "throughput",
        mine["rate"],
        "workflows/s",
        n=WORKFLOWS * len(rounds),
        least=round(min(rates)),
        most=round(max(rates)),
        rate_share=round(mine["rate"] / other["rate"], 3),
        cpu_share=round(mine["cpu_ms"] / other["cpu_ms"], 3),
        **more,
        **{name: round(value, 3) for name, value in mine.items() if name != "rate"},
    )


def _medians(rounds: Sequence[Round]) -> Round:
    return {name: percentile([each[name] for each in rounds], 0.5) for name in rounds[0]}


class _Served:
    """A database with a runner of its own."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._stack = AsyncExitStack()
        self._keys = Keys()

    async def __aenter__(self) -> "_Served":
        process = await self._stack.enter_async_context(runner_process(self.database))
        self._runner = process.pid
        await settled_in(self.database, runners=1)
        self._client = await self._stack.enter_async_context(Client(settings_of(self.database)))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    async def fill(self, finished: int) -> None:
        """Copies of one execution that has finished, older than it, as autovacuum leaves them."""
        await run_one(self._client, "template", steps=1)
        async with self.database.connected() as connection:
            for first in range(1, finished + 1, BATCH):
                last = min(first + BATCH - 1, finished)
                for copy in COPIES:
                    await connection.execute(copy, first, last, OLDER, timeout=600)
            await connection.execute("vacuum analyze", timeout=1800)
            rows = await connection.fetchval("select count(*) from engine.executions", timeout=600)
            if rows != finished + 1:
                raise AssertionError(f"{rows} executions instead of {finished + 1}")

    async def round(self) -> Round:
        async with Meter(self.database, runners=[self._runner]) as meter:
            await run_many(self._client, self._keys, WORKFLOWS, at_once=AT_ONCE)
        return {
            "rate": WORKFLOWS / meter.seconds,
            "cpu_ms": meter.cpu_ms(WORKFLOWS),
            **meter.each(WORKFLOWS),
        }
