"""Nothing that others could see leaves an execution before all that it may depend on is stored.

The journal's table is locked while a step is at work, so that its result reaches the body but not
the database; what the body asks for next has to wait.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from engine import Client, Deferred, Entity, Workflow, activity, query, rpc
from engine.testing import TestCluster
from tests.eventually import eventually

BLOCKED = """
    select count(*) from pg_stat_activity
    where datname = current_database() and wait_event_type = 'Lock'
        and application_name like 'outlast:%:lane-%'
"""


class Stage:
    """What a test and the steps have in common."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.end = asyncio.Event()
        self.seen: list[str] = []

    def see(self, what: str) -> None:
        self.seen.append(what)


class Witness(Entity):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @rpc
    async def told(self, what: str) -> None:
        self.stage.see(f"the entity of {what}")


class Steps(Workflow[str, str]):
    """Does what the request says once the first step has its result."""

    never = Deferred(str)

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.got = ""

    async def execute(self, request: str) -> str:
        self.got = await self.first()
        if request == "step":
            await self.second(self.got)
        elif request == "message":
            await self.entity(Witness, "w").told(self.got)
        elif request == "child":
            await self.run_child(Child, self.got)
        elif request == "query":
            await self.never.wait()
        return self.got

    @activity
    async def first(self) -> str:
        self.stage.began.set()
        await self.stage.end.wait()
        return "the result"

    @activity
    async def second(self, got: str) -> None:
        self.stage.see(f"the step with {got}")

    @query
    def state(self) -> str:
        self.stage.see(f"the query of {self.got}")
        return self.got


class Child(Workflow[str, None]):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def execute(self, request: str) -> None:
        self.stage.see(f"the child of {request}")


@asynccontextmanager
async def result_not_stored(
    dsn: str, request: str
) -> AsyncIterator[tuple[Stage, Client, asyncpg.Connection]]:
    """Inside, the result of the first step is known and cannot be stored."""
    stage = Stage()
    connection = await asyncpg.connect(dsn)
    cluster = TestCluster(Steps(stage), Child(stage), Witness(stage), dsn=dsn)
    async with asyncio.timeout(20), cluster:
        await cluster.client.start(Steps, request, key="e")
        await stage.began.wait()
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("lock table engine.journal in share mode")
        stage.end.set()

        async def blocked() -> Any:
            return await connection.fetchval(BLOCKED)

        try:
            await eventually(blocked)
            yield stage, cluster.client, connection
        finally:
            await transaction.rollback()
        if request == "query":
            await cluster.client.execution(Steps, "e").resolve(Steps.never, "now")
        assert await cluster.client.execution(Steps, "e").join() == "the result"
    await connection.close()


async def test_no_step_begins_before_what_it_depends_on_is_stored(dsn: str) -> None:
    async with result_not_stored(dsn, "step") as (stage, _, _):
        assert stage.seen == []
    assert stage.seen == ["the step with the result"]


async def test_no_message_is_sent_before_what_it_depends_on_is_stored(dsn: str) -> None:
    async with result_not_stored(dsn, "message") as (stage, _, _):
        assert stage.seen == []
    assert stage.seen == ["the entity of the result"]


async def test_no_child_begins_before_what_it_depends_on_is_stored(dsn: str) -> None:
    async with result_not_stored(dsn, "child") as (stage, _, _):
        assert stage.seen == []
    assert stage.seen == ["the child of the result"]


async def test_no_query_is_answered_before_what_it_depends_on_is_stored(dsn: str) -> None:
    async with result_not_stored(dsn, "query") as (stage, client, _):
        asked = asyncio.ensure_future(client.execution(Steps, "e").query(Steps.state))
        await eventually(lambda: stage.seen == ["the query of the result"])
        assert not asked.done()
    assert await asked == "the result"


async def test_nobody_learns_the_outcome_before_it_is_stored(dsn: str) -> None:
    async with result_not_stored(dsn, "nothing more") as (_, client, connection):
        joined = asyncio.ensure_future(client.execution(Steps, "e").join())
        assert await connection.fetchval("select count(*) from engine.replies") == 0
        assert not joined.done()
    assert await joined == "the result"
