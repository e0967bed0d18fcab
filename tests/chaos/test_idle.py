"""What a runner asks of the database while there is nothing to do."""

import asyncio
import logging
from pathlib import Path

import asyncpg
import pytest

from engine.core.clock import monotonic
from tests.chaos.cluster import cluster

log = logging.getLogger(__name__)

SECONDS = 20
TRANSACTIONS = """
    select xact_commit + xact_rollback from pg_stat_database where datname = $1
"""


@pytest.mark.timeout(120)
async def test_an_idle_runner_issues_at_most_one_statement_a_second(
    dsn: str, server_dsn: str, tmp_path: Path
) -> None:
    """Each of its statements is a transaction, and nobody else uses its database."""
    async with cluster(dsn, tmp_path) as chaos:
        await chaos.start_runners(1)
        name = await chaos.database.fetchval("select current_database()")
        await chaos.database.close()
        observer = await asyncpg.connect(server_dsn)
        try:
            await asyncio.sleep(5)  # it has settled, and sessions have reported what they did
            before, since = await observer.fetchval(TRANSACTIONS, name), monotonic()
            await asyncio.sleep(SECONDS)
            spent = await observer.fetchval(TRANSACTIONS, name) - before
            rate = spent / (monotonic() - since)
        finally:
            await observer.close()
        log.info("numbers: %d statements, %.2f a second", spent, rate)
        assert 0 < rate <= 1
