"""Server processes that are terminated under the runners: one lane's, all of them, the server.

With ``--scale=full``, as by ``make backends``, all of them every five seconds for ten minutes.
"""

import asyncio
import logging
import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from engine.core.clock import monotonic
from engine.embedded import EmbeddedPostgres
from engine.storage.migrate import migrate
from tests.chaos import audit
from tests.chaos.a_round import Run, a_round, told
from tests.chaos.cluster import SHARDS, Process, cluster
from tests.chaos.load import load
from tests.chaos.server import own_server
from tests.chaos.strangers import TERMINATE
from tests.eventually import eventually

log = logging.getLogger(__name__)

TERMINATE_ALL = """
    select count(pg_terminate_backend(pid)) from pg_stat_activity
    where datname = current_database() and backend_type = 'client backend'
        and pid <> pg_backend_pid()
"""
EPOCHS = "select sum(epoch) from engine.shards"


async def again_and_again(
    action: Callable[[], Awaitable[object]], *, every: float, seconds: float
) -> None:
    until = monotonic() + seconds
    while monotonic() < until:
        await action()
        await asyncio.sleep(every)


@pytest.mark.timeout(150)
async def test_a_lane_that_loses_its_session_takes_its_shards_again_and_goes_on(
    dsn: str, tmp_path: Path
) -> None:
    async with cluster(dsn, tmp_path, forked=True) as chaos, load(dsn) as work:
        await audit.install(chaos.database)
        (runner,) = await chaos.start_runners(1)
        before = await chaos.database.fetchval(EPOCHS)
        pattern = f"outlast:{runner.runner}:lane-0"
        assert await chaos.database.fetchval(TERMINATE, pattern) == 1

        async def taken_again() -> bool:
            # The other lane's shards stay in their epoch.
            return await chaos.database.fetchval(EPOCHS) - before == SHARDS // 2

        await eventually(taken_again, timeout=10)
        await eventually(lambda: runner.owned == SHARDS, timeout=10)
        await work.check(chaos)
        await audit.assert_no_foreign_rows(chaos.database)


@pytest.mark.timeout(150)
async def test_lanes_that_lose_their_sessions_all_the_time_lose_no_work(
    dsn: str, tmp_path: Path
) -> None:
    async with cluster(dsn, tmp_path, forked=True) as chaos:
        await audit.install(chaos.database)
        runners = await chaos.start_runners(2)

        async def terminate() -> None:
            await chaos.database.fetchval(TERMINATE, "outlast:%:lane%")

        async with load(dsn) as work:
            await again_and_again(terminate, every=0.3, seconds=10)
            await chaos.shared(runners)
            assert await work.check(chaos) > 10
        await audit.assert_no_foreign_rows(chaos.database)


@pytest.mark.timeout(150)
@pytest.mark.parametrize("role", ["user", "pool", "registry", "listener"])
async def test_sessions_that_hold_no_locks_may_end_without_any_shard_moving(
    dsn: str, tmp_path: Path, role: str
) -> None:
    async with cluster(dsn, tmp_path, forked=True) as chaos:
        await audit.install(chaos.database)
        runners = await chaos.start_runners(2)
        before = await chaos.database.fetchval(EPOCHS)

        async def terminate() -> None:
            await chaos.database.fetchval(TERMINATE, f"outlast:%:{role}")

        async with load(dsn) as work:
            await again_and_again(terminate, every=0.1, seconds=4)
            assert await work.check(chaos) > 10
        await chaos.shared(runners)
        assert await chaos.database.fetchval(EPOCHS) == before
        await audit.assert_no_foreign_rows(chaos.database)


class Terminations:
    """All client backends of the run's database end, the applications' own too, all at once."""

    def __init__(self, run: Run, every: float) -> None:
        self.done: Counter[str] = Counter()
        self.ended: set[Process] = set()
        self._run = run
        self._every = every

    async def go_on(self, until: asyncio.Event) -> None:
        chaos = self._run.chaos
        await chaos.shared(chaos.runners)  # one that has not served yet may end
        began = list(chaos.processes)
        while not until.is_set():
            self.done["terminated"] += await chaos.database.fetchval(TERMINATE_ALL)
            self.done["terminations"] += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(until.wait(), self._every)
        assert [each for each in chaos.processes if each.running] == began


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "every" in metafunc.fixturenames:
        full = metafunc.config.getoption("scale") == "full"
        every, seconds = (5.0, 600.0) if full else (2.0, 20.0)
        limit = pytest.mark.timeout(240 + 2 * seconds)
        found = pytest.param(every, seconds, marks=limit, id="full" if full else "small")
        metafunc.parametrize(("every", "seconds"), [found])


async def test_all_that_was_acknowledged_ends_though_every_backend_is_terminated_again_and_again(
    tmp_path: Path, every: float, seconds: float
) -> None:
    with own_server() as server:
        seed = random.randrange(1 << 31)
        async with a_round(server.dsn, tmp_path, seed, lambda run: Terminations(run, every)) as run:
            await run.live(seconds)
            violations = await run.judge()
    log.info("%.0f s: %s", seconds, dict(sorted(run.counted().items())))
    assert run.faults.done["terminations"] >= seconds / every / 2
    if violations:
        pytest.fail(told(run, violations))


@pytest.fixture
def project() -> Iterator[Path]:
    """Where a server may live that is this test's own."""
    prefix = "outlast-project-"
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o755)
        yield Path(path)


@pytest.mark.timeout(240)
async def test_nothing_acknowledged_is_lost_when_the_server_crashes(
    project: Path, tmp_path: Path
) -> None:
    async with AsyncExitStack() as servers:
        server = await servers.enter_async_context(EmbeddedPostgres(project))
        await migrate(server.dsn)
        async with (
            cluster(server.dsn, tmp_path, forked=True) as chaos,
            load(server.dsn, pace=0.05) as work,
        ):
            runners = await chaos.start_runners(2)
            for _ in range(3):
                await asyncio.sleep(2)
                os.kill(postmaster(server), signal.SIGKILL)
                # Whoever comes next starts it again, at the same port.
                again = await servers.enter_async_context(EmbeddedPostgres(project))
                assert again.dsn == server.dsn
            await asyncio.sleep(2)
            await chaos.shared(runners)
            assert await work.check(chaos) > 10
    await eventually(lambda: not (server.home / "data" / "postmaster.pid").exists(), timeout=20)


def postmaster(server: EmbeddedPostgres) -> int:
    """The server that this test has started for itself."""
    return int((server.home / "data" / "postmaster.pid").read_text().splitlines()[0])
