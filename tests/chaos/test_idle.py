"""What a runner asks of the database while there is nothing to do."""

import asyncio
import logging
from pathlib import Path

import pytest

from engine.core.clock import monotonic
from tests.chaos.cluster import cluster

log = logging.getLogger(__name__)

SECONDS = 25


@pytest.mark.timeout(120)
async def test_an_idle_runner_issues_at_most_one_statement_a_second(
    dsn: str, tmp_path: Path
) -> None:
    async with cluster(dsn, tmp_path) as chaos:
        (runner,) = await chaos.start_runners(1)
        await asyncio.sleep(3)  # it has settled
        before, since = await runner.statements(), monotonic()
        await asyncio.sleep(SECONDS)
        spent, seconds = await runner.statements() - before, monotonic() - since
        log.info("numbers: %d statements in %.1f s", spent, seconds)
        assert 0 < spent <= seconds
