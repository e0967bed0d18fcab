"""T3, T4, T6: where the time of W3, W4 and W6 goes, statement by statement.

Statements are timed where they are awaited, in the driver here and in the runner, which writes its
own down when it ends. What is between them is Python, and the way of notifications.
"""

import asyncio
import json
import tempfile
from bisect import bisect_right
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TypeAlias

from bench.alone import UNTIL_IT_WAITS
from bench.driver import Keys, run_one
from bench.place import WARM_UP, Options, settings_of, settled_in
from bench.process import runner_process
from bench.results import Results
from bench.server import Server
from bench.spans import VARIABLE, Span, noted
from bench.workflows import Waits
from engine import Client

COUNT = 300
STEPS = 500

Operate: TypeAlias = Callable[[Client, Keys], Awaitable[Span]]
NotedRunner: TypeAlias = tuple[Client, list[Span]]


async def timeline(server: Server, results: Results, options: Options) -> None:
    await _operations("T3", _start_to_result, server, results, options)
    await _operations("T6", _resolve_to_result, server, results, options)
    async with _noted_runner(server) as (client, spans):
        begun = perf_counter()
        await run_one(client, Keys()(), steps=options.sized(STEPS))
        ended = perf_counter()
    steps = [each for each in spans if each.name == "append" and begun < each.begun < ended]
    results.add_durations("T4", "", "all of it", [b.begun - a.begun for a, b in pairwise(steps)])
    _add(results, "T4", "runner", steps, steps)


async def _operations(
    workload: str, operate: Operate, server: Server, results: Results, options: Options
) -> None:
    async with _noted_runner(server) as (client, theirs):
        keys = Keys()
        for _ in range(WARM_UP):
            await operate(client, keys)
        with noted() as ours:
            done = [await operate(client, keys) for _ in range(options.sized(COUNT))]
    results.add_durations(workload, "", "all of it", [each.ended - each.begun for each in done])
    _add(results, workload, "driver", ours, done)
    _add(results, workload, "runner", theirs, done)


@asynccontextmanager
async def _noted_runner(server: Server) -> AsyncGenerator[NotedRunner]:
    """A client and a runner, whose statements are there when it has ended."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        path, spans = Path(folder) / "spans.json", list[Span]()
        async with (
            server.database() as database,
            runner_process(database, env={VARIABLE: str(path)}),
        ):
            await settled_in(database, runners=1)
            async with Client(settings_of(database)) as client:
                yield client, spans
        spans += [Span(*each) for each in json.loads(path.read_text())]


def _add(
    results: Results,
    workload: str,
    process: str,
    spans: Iterable[Span],
    operations: Sequence[Span],
) -> None:
    """When each statement begins after its operation has, and how long it takes: medians."""
    begins = [each.begun for each in operations]
    found: dict[str, list[tuple[float, float]]] = {}
    for span in spans:
        place = bisect_right(begins, span.begun) - 1
        if place >= 0 and span.begun < operations[place].ended:
            taken = span.begun - begins[place], span.ended - span.begun
            found.setdefault(span.name, []).append(taken)
    for name, each in sorted(found.items(), key=lambda item: median(at for at, _ in item[1])):
        if len(each) >= len(operations) / 2:
            at, took = (median(times) * 1000 for times in zip(*each, strict=True))
            results.add(workload, process, name, at, "ms", took_ms=round(took, 3))


async def _start_to_result(client: Client, keys: Keys) -> Span:
    begun = perf_counter()
    await run_one(client, keys(), steps=1)
    return Span("", begun, perf_counter())


async def _resolve_to_result(client: Client, keys: Keys) -> Span:
    execution = await client.start(Waits, 1, key=keys())
    await asyncio.sleep(UNTIL_IT_WAITS)
    begun = perf_counter()
    await execution.resolve(Waits.go, 1)
    await execution.join()
    return Span("", begun, perf_counter())
