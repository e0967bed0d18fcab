"""Searches for executions among 100,000 read what they find, and little else."""

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import asyncpg
import pytest

from engine.core.ids import Snowflake, first_snowflake
from engine.core.status import Status
from engine.storage.connect import OUR_PLANS, PLANNED_ANEW
from engine.storage.execution_page import execution_page
from engine.storage.protocol import ExecutionFilter
from tests.storage.test_queries import nodes

COUNT = 100_000
BEGAN = datetime(2025, 6, 1, tzinfo=UTC)
PAGE = 50
MOST = 2500
BEGAN_MS = first_snowflake(BEGAN) >> 22
MINUTE = timedelta(minutes=1)
FULL = f"""
insert into engine.executions (
    request_id, workflow, execution_id, group_id, shard, status, version, parent, created_at,
    finished_at, attributes, error
)
select
    (i * 60000 + {BEGAN_MS}) << 22,
    case when i % 1000 = 7 then 'Rare' else 'Fulfil' end, 'o-' || i, 1, i % 300,
    case when i % 500 = 9 then 6 when i % 900 = 3 then 2 else 5 end, 1,
    case when i % 10 = 0 then i / 100 end,
    timestamptz '2025-06-01T00:00Z' + i * interval '1 minute', now(),
    case when i % 2 = 0 then jsonb_build_object('tenant', i % 700, 'kind', 'order') end,
    case when i % 500 = 9 then case when i % 5000 = 9 then 'KeyError' else 'ValueError' end end
from generate_series(1, {COUNT}::bigint) i
"""
SEARCHES = {
    "all": ExecutionFilter(),
    "behind": ExecutionFilter(after=first_snowflake(BEGAN + 50_000 * MINUTE)),
    "workflow": ExecutionFilter(workflow="Rare"),
    "status": ExecutionFilter(statuses=[Status.SUSPENDED]),
    "statuses": ExecutionFilter(statuses=[Status.SUSPENDED, Status.FAILED]),
    "common": ExecutionFilter(workflow="Fulfil", statuses=[Status.SUCCEEDED]),
    "attributes": ExecutionFilter(attributes={"tenant": 42}),
    "common attributes": ExecutionFilter(attributes={"kind": "order"}),
    "unknown attributes": ExecutionFilter(attributes={"tenant": "nobody"}),
    "version": ExecutionFilter(workflow="Fulfil", version=1),
    "parent": ExecutionFilter(parent=Snowflake(500)),
    "error": ExecutionFilter(error="KeyError"),
    "after": ExecutionFilter(started_after=BEGAN + (COUNT - 20) * MINUTE),
    "before": ExecutionFilter(started_before=BEGAN + 100 * MINUTE),
    "before some": ExecutionFilter(started_before=BEGAN + COUNT // 20 * MINUTE),
    "before half": ExecutionFilter(started_before=BEGAN + COUNT // 2 * MINUTE),
    "workflow before": ExecutionFilter(
        workflow="Fulfil", started_before=BEGAN + COUNT // 2 * MINUTE
    ),
    "attributes before": ExecutionFilter(
        attributes={"kind": "order"}, started_before=BEGAN + COUNT // 2 * MINUTE
    ),
    "between": ExecutionFilter(
        started_after=BEGAN + 18_000 * MINUTE, started_before=BEGAN + 18_360 * MINUTE
    ),
    "several": ExecutionFilter(workflow="Fulfil", error="ValueError", statuses=[Status.FAILED]),
}


@pytest.fixture
async def connection(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    for setting, value in (OUR_PLANS | PLANNED_ANEW).items():
        await connection.execute(f"set {setting} = {value}")
    yield connection
    await connection.close()


async def test_each_filter_has_an_index_that_leads_to_what_is_found(
    connection: asyncpg.Connection,
) -> None:
    await connection.execute(FULL)
    await connection.execute("vacuum analyze engine.executions")

    read = {name: await rows_read(connection, search) for name, search in SEARCHES.items()}

    assert {name: rows for name, rows in read.items() if rows is None or rows > MOST} == {}


async def rows_read(connection: asyncpg.Connection, search: ExecutionFilter) -> int | None:
    """How many rows of ``executions`` a page of the search touches; None if it scans all."""
    query, arguments = execution_page("engine", search, PAGE)
    explained = await connection.fetchval(f"explain (analyze, format json) {query}", *arguments)
    touched = 0
    for node in nodes(json.loads(explained)[0]["Plan"]):
        if node.get("Relation Name") == "executions":
            if node["Node Type"] == "Seq Scan":
                return None
            removed = sum(
                float(str(node.get(f"Rows Removed by {why}", 0)))
                for why in ("Filter", "Index Recheck")
            )
            touched += int(float(str(node["Actual Rows"])) + removed)
    return touched
