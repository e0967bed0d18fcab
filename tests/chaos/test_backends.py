"""Server processes that are terminated under the runners: one lane's, all of them, the server."""

import asyncio
import os
import signal
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from engine.core.clock import monotonic
from engine.embedded import EmbeddedPostgres
from engine.storage.migrate import migrate
from tests.chaos import audit
from tests.chaos.cluster import SHARDS, cluster
from tests.chaos.load import load
from tests.eventually import eventually

TERMINATE = """
    select count(pg_terminate_backend(pid)) from pg_stat_activity
    where application_name like $1 and datname = current_database()
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
    async with cluster(dsn, tmp_path) as chaos, load(dsn) as work:
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
    async with cluster(dsn, tmp_path) as chaos:
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
    async with cluster(dsn, tmp_path) as chaos:
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


@pytest.mark.timeout(180)
async def test_terminating_every_session_of_the_engine_again_and_again_loses_no_work(
    dsn: str, tmp_path: Path
) -> None:
    async with cluster(dsn, tmp_path) as chaos:
        await audit.install(chaos.database)
        runners = await chaos.start_runners(2)

        async def terminate() -> None:
            await chaos.database.fetchval(TERMINATE, "outlast:%")

        async with load(dsn) as work:
            await again_and_again(terminate, every=2, seconds=20)
            await chaos.shared(runners)
            assert await work.check(chaos) > 10
        await audit.assert_no_foreign_rows(chaos.database)


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
        async with cluster(server.dsn, tmp_path) as chaos, load(server.dsn, pace=0.05) as work:
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
