"""The workloads, for any engine, and the command line that each engine's adapter has.

Runs in the adapter's environment, so that nothing is imported that needs more than the standard
library and uvloop.
``work VARIANT ADDRESS`` serves, and says ``READY`` with the address to drive it at;
``drive VARIANT ADDRESS SCALE PID WORKLOAD…`` measures, and says one figure a line as JSON.
"""

import asyncio
import gc
import json
import os
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from time import perf_counter
from typing import Any, Literal, Protocol

import uvloop

from bench.results import milliseconds, percentile
from bench.usage import cpu_seconds, resident_mb

LIMIT = 90.0  # for one workload
SAMPLING = 10.0  # for calls one after the other, where the engine is slow
SLEEP = 5.0
SETTLE = 0.05
REST = 1.0  # before each workload: what the one before has left is not measured with it

Kind = Literal["one_step", "many_steps", "fan_out", "sleeper"]


class Engine(Protocol):
    """What an adapter can do. ``answers``: whether ``run_all`` gives results."""

    answers: bool

    async def run_all(self, kind: Kind, requests: Sequence[Any]) -> Sequence[Any]:
        """Start one for each request, all at once, and await all; their results in order."""
        ...

    async def start_waiting(self) -> Any:
        """Start one that waits for an event; gives what ``resume`` needs."""
        ...

    async def resume(self, waiting: Any, value: int) -> Any:
        """Send it the event and await its result."""
        ...

    async def sleep_all(self, count: int, seconds: float) -> Sequence[float]:
        """Start that many that sleep, and await all; how long each was past its time, in s."""
        ...


class Load:
    """Runs the workloads; ``worker`` is the process that serves, which may be this one."""

    def __init__(self, engine: Engine, *, worker: int, scale: float) -> None:
        self.engine = engine
        self.worker = worker
        self._scale = scale

    async def run(self, workload: str) -> None:
        """Within the limit; raises TimeoutError."""
        async with asyncio.timeout(LIMIT):
            await getattr(self, workload.lower())()

    async def warm_up(self) -> None:
        async with asyncio.timeout(LIMIT):
            await self.engine.run_all("one_step", range(self._sized(100)))

    async def w1(self) -> None:
        """One-step workflows, all started at once and all awaited."""
        count = self._sized(2000)
        seconds, spent = await self._timed("one_step", range(count), list(range(count)))
        say("W1", "throughput", count / seconds, "/s", n=count, **spent)

    async def w2(self) -> None:
        """Workflows of ten steps, the same way."""
        count = self._sized(500)
        seconds, spent = await self._timed("many_steps", [10] * count, [45] * count)
        say("W2", "throughput", count * 10 / seconds, "steps/s", n=f"{count}x10", **spent)

    async def w3(self) -> None:
        """One-step workflows one after the other, from the start to the result."""
        taken: list[float] = []
        since = perf_counter()
        while len(taken) < self._sized(200) and perf_counter() < since + SAMPLING:
            number = len(taken)
            seconds, _ = await self._timed("one_step", [number], [number])
            taken.append(seconds)
        say_latency("W3", taken)

    async def w4(self) -> None:
        """Steps of one workflow."""
        steps = self._sized(500)
        seconds, spent = await self._timed("many_steps", [steps], [sum(range(steps))])
        say("W4", "one step", seconds / steps * 1000, "ms", n=steps, **spent)

    async def w5(self) -> None:
        """A parent that starts one-step children and adds up their results."""
        count = self._sized(200)
        seconds, spent = await self._timed("fan_out", [count], [sum(range(count))])
        say("W5", "parent and children", seconds, "s", n=count, **spent)

    async def w6(self) -> None:
        """From an event to the result of the workflow that waited for it."""
        taken: list[float] = []
        since = perf_counter()
        while len(taken) < self._sized(100) and perf_counter() < since + SAMPLING:
            waiting = await self.engine.start_waiting()
            await asyncio.sleep(SETTLE)
            began = perf_counter()
            if await self.engine.resume(waiting, len(taken)) != len(taken):
                raise AssertionError("the event that came is not the one that was sent")
            taken.append(perf_counter() - began)
        say_latency("W6", taken)

    async def w7(self) -> None:
        """Workflows that sleep: how late they wake up, and what they need meanwhile."""
        count, began, before = self._sized(5000), perf_counter(), resident_mb(self.worker)
        async with _highest_memory(self.worker) as highest:
            late = await self.engine.sleep_all(count, SLEEP)
        seconds, more = perf_counter() - began, {"n": count}
        if len(late) != count:
            raise AssertionError(f"{len(late)} of {count} have slept")
        say("W7", "lag, p50", percentile(late, 0.5), "s", **more)
        say("W7", "lag, max", max(late), "s", **more)
        say("W7", "until all have ended", seconds, "s", **more)
        say("W7", "memory while asleep", highest() - before, "MB", before=round(before, 1), **more)

    async def _timed(
        self, kind: Kind, requests: Sequence[int], expected: list[int]
    ) -> tuple[float, dict[str, float]]:
        pids = {"cpu_driver": os.getpid(), "cpu_worker": self.worker}
        before = {name: cpu_seconds(pid) for name, pid in pids.items()}
        began = perf_counter()
        results = await self.engine.run_all(kind, requests)
        seconds = perf_counter() - began
        if self.engine.answers and list(results) != expected:
            raise AssertionError(f"{kind} gave other results than it should")
        spent = {name: round(cpu_seconds(pid) - before[name], 2) for name, pid in pids.items()}
        return seconds, spent

    def _sized(self, count: int) -> int:
        return max(1, int(count * self._scale))


def say(workload: str, metric: str, value: float, unit: str, **more: object) -> None:
    row = {"workload": workload, "metric": metric, "value": value, "unit": unit, **more}
    print(json.dumps(row), flush=True)


def say_latency(workload: str, taken: Sequence[float]) -> None:
    shares = milliseconds(taken)
    for share in ("p50", "p99"):
        say(workload, f"latency, {share}", shares.pop(share), "ms", n=len(taken), **shares)


@asynccontextmanager
async def _highest_memory(pid: int) -> AsyncGenerator[Callable[[], float]]:
    """The most that the process has had at any time within."""
    highest = 0.0

    async def watch() -> None:
        nonlocal highest
        while True:
            highest = max(highest, resident_mb(pid))
            await asyncio.sleep(0.1)

    async with asyncio.TaskGroup() as group:
        watching = group.create_task(watch())
        yield lambda: highest
        watching.cancel()


def main(
    work: Callable[[str, str], Coroutine[Any, Any, None]],
    connect: Callable[[str, str], AbstractAsyncContextManager[Engine]],
) -> None:
    """The command line of an adapter: ``work`` and ``connect`` take the variant and the address."""
    role, variant, address, *rest = sys.argv[1:]
    uvloop.install()  # as `outlast run` does; every engine gets the same loop
    if role == "work":
        asyncio.run(work(variant, address))
    else:
        # Workers have the collector they come with; drivers' leaves alone what was imported.
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 20)
        scale, worker, *workloads = rest
        asyncio.run(_drive(connect(variant, address), float(scale), int(worker), workloads))


async def _drive(
    connecting: AbstractAsyncContextManager[Engine],
    scale: float,
    worker: int,
    workloads: Sequence[str],
) -> None:
    """``worker`` 0: this process serves too."""
    async with connecting as engine:
        load = Load(engine, worker=worker or os.getpid(), scale=scale)
        await load.warm_up()
        for workload in workloads:
            await asyncio.sleep(REST)
            try:
                await load.run(workload)
            except TimeoutError:
                print(json.dumps({"workload": workload, "unfinished": LIMIT}), flush=True)
                os._exit(0)  # what it left running would be measured with the next
            print(json.dumps({"workload": workload, "done": True}), flush=True)
