"""Measure latency, throughput and statements: ``make bench`` or ``python -m bench --help``.

Starts and joins workflows from this process, once with the runner in a process of its own and once
with it in here. The workloads W1 to W4 and W8 are those that we measure other engines with; S1 is a
stream, Q1 and Q2 are queues without and with limits, and H1 is what callers notice when one of
several runners stops.
"""

import argparse
import asyncio
import os
import secrets
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter

from bench.handover import measure_handovers
from bench.process import runner_process, within
from bench.results import ROOT, Results, milliseconds
from bench.runner import owns_all
from bench.server import PUBLISHED, Server, open_server
from bench.workflows import Feed, Free, Limited, Steps
from engine import Client, Runner, Settings

LATENCY = 300
MANY = 2000
LONGER, LONGER_STEPS = 500, 10
SEQUENTIAL = 500
STREAMED = 50_000
ITEMS = 5000
IDLE_SECONDS = 20.0


class Driver:
    """Runs the workloads through one client; ``runner`` is the pid of the runner's process."""

    def __init__(
        self, client: Client, server: Server, results: Results, *, variant: str, runner: int
    ) -> None:
        self.client = client
        self.server = server
        self.results = results
        self.variant = variant
        self.runner = runner
        self._keys = 0
        self._series = secrets.token_hex(4)  # a key used before would find the result of then

    async def run(self, *, scale: float, counting: bool) -> None:
        sized = [
            max(1, int(n * scale)) for n in (LATENCY, MANY, LONGER, SEQUENTIAL, STREAMED, ITEMS)
        ]
        await self._all(max(1, int(100 * scale)), steps=1)  # warm connections and plans
        await self.latency(sized[0], counting=counting)
        await self.many("W1", sized[1], steps=1, counting=counting)
        await self.many("W2", sized[2], steps=LONGER_STEPS, counting=counting)
        await self.many("W4", 1, steps=sized[3], counting=counting)
        await self.stream(sized[4], counting=counting)
        await self.items("Q1", Free, sized[5])
        await self.items("Q2", Limited, sized[5])

    async def latency(self, count: int, *, counting: bool) -> None:
        """W3: one after the other, from the call of start to the result."""
        before = await self.server.transactions() if counting else 0
        taken: list[float] = []
        for _ in range(count):
            began = perf_counter()
            await self._one(steps=1)
            taken.append(perf_counter() - began)
        figures = milliseconds(taken)
        self._add("W3", "start to result, p50", figures.pop("p50"), "ms", n=count, **figures)
        if counting:
            await self._statements("W3", before, count)

    async def many(self, workload: str, count: int, *, steps: int, counting: bool) -> None:
        """W1, W2, W4: all at once, all awaited."""
        before = await self.server.transactions() if counting else 0
        cpu, runner_cpu = cpu_seconds(os.getpid()), cpu_seconds(self.runner)
        began = perf_counter()
        await self._all(count, steps=steps)
        seconds = perf_counter() - began
        spent = {
            "cpu_driver": round(cpu_seconds(os.getpid()) - cpu, 2),
            "cpu_runner": round(cpu_seconds(self.runner) - runner_cpu, 2),
        }
        if count == 1:
            self._add(workload, "one step", seconds / steps * 1000, "ms", n=steps, **spent)
        elif steps == 1:
            self._add(workload, "throughput", count / seconds, "workflows/s", n=count, **spent)
        else:
            rate = count * steps / seconds
            self._add(workload, "throughput", rate, "steps/s", n=f"{count}x{steps}", **spent)
        if counting:
            await self._statements(workload, before, count)

    async def stream(self, count: int, *, counting: bool) -> None:
        """S1: one stream, taken as fast as it comes."""
        before = await self.server.transactions() if counting else 0
        cpu, runner_cpu = cpu_seconds(os.getpid()), cpu_seconds(self.runner)
        began = perf_counter()
        taken = 0
        async for number in self.client.entity(Feed, self._series).numbers(count):
            if number != taken:
                raise AssertionError(f"chunk {taken} is {number}")
            taken += 1
        seconds = perf_counter() - began
        spent = {
            "cpu_driver": round(cpu_seconds(os.getpid()) - cpu, 2),
            "cpu_runner": round(cpu_seconds(self.runner) - runner_cpu, 2),
        }
        self._add("S1", "throughput", taken / seconds, "chunks/s", n=count, **spent)
        if counting:
            each = (await self.server.transactions() - before) / taken * 1000
            self._add("S1", "transactions per 1000 chunks", each, "")

    async def items(self, workload: str, queue: type[Free], count: int) -> None:
        """Q1, Q2: items of a queue, all submitted at once and all awaited."""
        began = perf_counter()
        async with asyncio.timeout(300):
            items = await asyncio.gather(*(self.client.submit(queue, n) for n in range(count)))
            if await asyncio.gather(*(item.join() for item in items)) != list(range(count)):
                raise AssertionError("an item has the answer of another")
        self._add(workload, "throughput", count / (perf_counter() - began), "items/s", n=count)

    async def idle(self, seconds: float) -> None:
        """W8: what a runner costs that has nothing to do."""
        before = await self.server.transactions()
        cpu = cpu_seconds(self.runner)
        await asyncio.sleep(seconds)
        count = await self.server.published() - before
        self._add(
            "W8",
            "idle runner",
            count / seconds,
            "transactions/s",
            seconds=seconds,
            cpu_runner=round(cpu_seconds(self.runner) - cpu, 2),
        )

    async def _all(self, count: int, *, steps: int) -> None:
        async with asyncio.timeout(300), asyncio.TaskGroup() as group:
            for _ in range(count):
                group.create_task(self._one(steps=steps))

    async def _one(self, *, steps: int) -> None:
        self._keys += 1
        key = f"{self._series}-{self._keys}"
        result = await self.client.execute(Steps, steps, key=key)
        if result != sum(range(steps)):
            raise AssertionError(f"{key} gave {result}")

    async def _statements(self, workload: str, before: int, workflows: int) -> None:
        count = await self.server.transactions() - before
        each = count / workflows
        self._add(workload, "transactions per workflow", each, "", counted=count)

    def _add(self, workload: str, metric: str, value: float, unit: str, **more: object) -> None:
        self.results.add(workload, self.variant, metric, value, unit, **more)
        print(f"{workload} {self.variant}: {metric} {value:.2f} {unit} {more}", flush=True)


def cpu_seconds(pid: int) -> float:
    """What a process has used; 0 where there is no /proc."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


async def measure(arguments: argparse.Namespace) -> None:
    async with open_server() as server:
        results = Results(path=arguments.output, postgres=await server.version())
        figures = milliseconds(await server.commit_seconds())
        results.add("", "", "one-row commit, p50", figures.pop("p50"), "ms", **figures)
        settings = Settings(dsn=server.dsn, schema="engine")
        options = {"scale": arguments.scale, "counting": not arguments.quick}
        for _ in range(arguments.repeat):
            if "other" in arguments.runner:
                async with runner_process(server) as process:
                    async with Client(settings) as client:
                        driver = Driver(
                            client, server, results, variant="other process", runner=process.pid
                        )
                        await driver.run(**options)
                    if not arguments.quick:
                        await driver.idle(IDLE_SECONDS)
            if "same" in arguments.runner:
                async with Runner(settings).register(Steps(), Feed(), Free(), Limited()) as runner:
                    await within(30, owns_all(runner), what="a runner that owns all shards")
                    pid = os.getpid()
                    driver = Driver(
                        runner.client, server, results, variant="same process", runner=pid
                    )
                    await driver.run(**options)
            if "several" in arguments.runner:
                for runners in (2, 3):
                    await measure_handovers(server, results, runners=runners)
        results.show()
        print(f"written to {results.path}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    day = datetime.now(UTC).date().isoformat()
    places = ["other", "same", "several"]
    parser.add_argument("--runner", choices=places, nargs="+", default=places)
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes (default 1)")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"count no statements, which takes {PUBLISHED:g} s each, and skip the idle runner",
    )
    parser.add_argument("--output", type=Path, default=ROOT / f"bench/results/{day}.jsonl")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
