"""Starts of one workflow, as a race's side, and what is stored of them."""

from typing import Literal

from engine import Client, EngineError, Execution, Workflow, signal
from engine.core.ids import Snowflake
from tests.gates import ServerGates, Side
from tests.storage.world import run_key

NAMES = "one", "other"
OnConflict = Literal["join", "fail", "restart-failed"]
STORED = """
    select
        array(select request_id from engine.dedup where key = any($1)) as keys,
        array(select request_id from engine.envelopes where request_id = any($2)) as envelopes,
        array(select request_id from engine.executions where request_id = any($2)) as executions,
        array(select request_id from engine.inbox where request_id = any($2)) as inbox
"""


class Double(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        return request * 2

    @signal
    async def hear(self, what: str) -> None:
        """Whatever it is."""


async def stored(gates: ServerGates, *ids: Snowflake, key: str) -> dict[str, list[Snowflake]]:
    row = await gates.sql.fetchrow(STORED, [run_key(key, Double.name)], ids)
    assert row is not None
    return dict(row)


def whole(*ids: Snowflake) -> dict[str, list[Snowflake]]:
    """What there is of a start that is stored once."""
    return {table: [*ids] for table in ("keys", "envelopes", "executions", "inbox")}


Told = dict[str, Execution[int] | EngineError]


def starting(
    gates: ServerGates,
    told: Told,
    name: str,
    client: Client,
    key: str,
    request: int,
    on_conflict: OnConflict = "join",
) -> Side:
    async def run() -> None:
        await gates(f"{name} asks")
        try:
            told[name] = await client.start(Double, request, key=key, on_conflict=on_conflict)
        except EngineError as error:
            told[name] = error

    return run


FAIL = """
    with failed as (
        update engine.executions set status = 6, finished_at = clock_timestamp()
        where request_id = $1 returning request_id
    )
    delete from engine.inbox where request_id in (select request_id from failed)
"""
RUN = "select run, status from engine.executions where request_id = $1"
