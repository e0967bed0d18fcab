"""How long a suite of tests on ``TestCluster`` takes: ``python -m bench.testkit [--tests 100]``.

Writes as many tests as a user would write them into a file, in five sorts, and runs pytest on it as
it comes, with two workers. Says what pytest took and how much processor time it and its workers
had.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter

ROOT = Path(__file__).resolve().parents[1]
HEAD = """
from datetime import timedelta
import pytest
from engine import *
from engine.testing import TestCluster, replay, stub

class Stock(Entity):
    @rpc
    async def reserve(self, count: int) -> str:
        return f"hold {count}"
    @rpc
    async def release(self, hold: str) -> None: ...

class Fulfil(Workflow[int, str]):
    approved = Deferred(bool)
    async def execute(self, request: int) -> str:
        stock = self.entity(Stock, "sku")
        hold = await stock.reserve(request)
        self.compensate(stock.release, hold)
        if not await self.approved.wait(timeout=timedelta(days=2)):
            raise PermissionError("no")
        return await self.charge(request)
    @activity(retry=RetryPolicy(attempts=5))
    async def charge(self, cents: int) -> str:
        return f"paid {cents}"

class Month(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        for day in range(30):
            await self.sleep(timedelta(days=1))
            await self.note(day)
        return request
    @activity
    async def note(self, day: int) -> None: ...
"""
SORTS = [
    """
async def test_approved_{n}():
    async with TestCluster(Fulfil(), Stock()) as cluster:
        execution = await cluster.client.start(Fulfil, {n})
        await cluster.advance(timedelta(days=1))
        await execution.resolve(Fulfil.approved, True)
        assert await execution.join() == "paid {n}"
""",
    """
async def test_refused_{n}():
    async with TestCluster(Fulfil(), Stock()) as cluster:
        execution = await cluster.client.start(Fulfil, {n})
        await execution.resolve(Fulfil.approved, False)
        with pytest.raises(ExecutionFailed, match="no"):
            await execution.join()
""",
    """
async def test_tried_again_{n}():
    errors = iter([ConnectionError(), ConnectionError(), None])
    def charge(cents: int) -> str:
        if error := next(errors):
            raise error
        return "at last"
    async with TestCluster(Fulfil(), Stock(), stubs=[stub(Fulfil.charge).by(charge)]) as cluster:
        execution = await cluster.client.start(Fulfil, {n})
        await execution.resolve(Fulfil.approved, True)
        await cluster.advance(timedelta(hours=1))
        assert await execution.join() == "at last"
""",
    """
async def test_crash_{n}():
    async with TestCluster(Fulfil(), Stock()) as cluster:
        execution = await cluster.client.start(Fulfil, {n})
        await cluster.settle()
        await cluster.crash()
        await execution.resolve(Fulfil.approved, True)
        assert await execution.join() == "paid {n}"
        await replay(await execution.history(), Fulfil())
""",
    """
async def test_month_{n}():
    async with TestCluster(Month()) as cluster:
        execution = await cluster.client.start(Month, {n})
        await cluster.advance(timedelta(days=30))
        assert await execution.join() == {n}
""",
]


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--tests", type=int, default=100)
    arguments.add_argument("--workers", default="2")
    chosen = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="outlast-kit-") as folder:
        tests = "".join(SORTS[n % len(SORTS)].format(n=n) for n in range(chosen.tests))
        (Path(folder) / "test_kit.py").write_text(HEAD + tests)
        (Path(folder) / "pytest.ini").write_text(
            f"[pytest]\nasyncio_mode = auto\npythonpath = {ROOT}\n"
            "asyncio_default_fixture_loop_scope = function\n"
        )
        began = perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-n", chosen.workers, "--durations=5"],
            cwd=folder,
            check=False,
        )
        taken = perf_counter() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"{chosen.tests} tests took {taken:.1f} s from start to end of pytest,", end=" ")
    print(f"{used.ru_utime + used.ru_stime:.1f} s of processor time")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
