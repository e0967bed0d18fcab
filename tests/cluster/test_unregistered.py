"""Messages of types that their owner has not registered: they wait, for a time."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from engine import Entity, RequestFailed, Workflow, rpc
from engine.core.envelope import Interrupt
from engine.core.ids import EntityAddress, EntityId, EntityType
from engine.core.reply import Interrupted
from engine.testing import TestCluster
from tests.eventually import eventually

PATIENCE = timedelta(minutes=5)


class Known(Entity):
    @rpc
    async def say(self, what: str) -> str:
        return what


class Late(Known):
    """Registered later than its messages come."""


class Task(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return request


@pytest.fixture(params=["memory", "postgres"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {} if request.param == "memory" else {"dsn": request.getfixturevalue("dsn")}


async def waiting(cluster: TestCluster, number: int) -> None:
    """Until so many messages of Late wait at the runner."""
    incarnation = cluster.runner._incarnation
    assert incarnation is not None
    rows = incarnation.delivery.parking._rows
    await eventually(lambda: len(rows["Late"]) == number)


async def test_a_type_that_is_registered_late_gets_its_waiting_messages_in_order(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Known(), **where) as cluster:
        late = cluster.client.entity(Late, "l")
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(late.say(str(n))) for n in range(20)]
            await waiting(cluster, 20)
            cluster.runner.register(Late())
        assert [call.result() for call in calls] == [str(n) for n in range(20)]


async def test_callers_of_a_type_that_is_never_registered_are_told_after_the_settings_time() -> (
    None
):
    async with TestCluster(Known(), unregistered_timeout=PATIENCE) as cluster:
        call = asyncio.create_task(cluster.client.entity(Late, "l").say("x"))
        await waiting(cluster, 1)
        await cluster.advance(timedelta(minutes=1))
        second = asyncio.create_task(cluster.client.entity(Late, "l").say("y"))
        await waiting(cluster, 2)

        await cluster.advance(PATIENCE - timedelta(minutes=1, milliseconds=1))
        assert not call.done()
        await cluster.advance(timedelta(milliseconds=1))
        with pytest.raises(RequestFailed, match="waited 0:05:00 for Late") as told:
            await call
        assert not second.done()
        await cluster.advance(timedelta(minutes=1))
        with pytest.raises(RequestFailed):
            await second
    assert told.value.error.type == "NotRegistered"
    assert "outlast dead retry" in told.value.error.message


async def test_on_postgres_they_are_told_too_and_a_retry_after_the_registration_is_answered(
    dsn: str,
) -> None:
    soon = timedelta(milliseconds=300)
    async with TestCluster(Known(), dsn=dsn, unregistered_timeout=soon) as cluster:
        client = cluster.client
        with pytest.raises(RequestFailed, match="register it with all runners"):
            await client.entity(Late, "l", key="k").say("x")
        cluster.runner.register(Late())
        (letter,) = [each async for each in client.dead_letters(Late)]
        await client.retry_dead_letters(letter.request_id)
        async with asyncio.timeout(10):
            assert await client.entity(Late, "l", key="k").say("x") == "x"


async def test_a_registration_in_time_ends_the_wait(where: dict[str, Any]) -> None:
    soon = timedelta(milliseconds=500) if "dsn" in where else PATIENCE
    async with TestCluster(Known(), unregistered_timeout=soon, **where) as cluster:
        late = cluster.client.entity(Late, "l")
        call = asyncio.create_task(late.say("x"))
        await waiting(cluster, 1)
        cluster.runner.register(Late())
        assert await call == "x"
        if "dsn" not in where:
            await cluster.advance(PATIENCE * 2)
        assert await late.say("y") == "y"
        assert [each async for each in cluster.client.dead_letters()] == []


async def test_executions_of_an_unknown_workflow_wait_as_long_as_it_takes() -> None:
    async with TestCluster(Known(), unregistered_timeout=PATIENCE) as cluster:
        execution = await cluster.client.start(Task, "x", key="t")
        await cluster.advance(PATIENCE * 10)
        assert "does not serve Task" in (await execution.describe()).why
        cluster.runner.register(Task())
        assert await execution.join(timedelta(seconds=10)) == "x"


async def test_a_waiting_message_can_be_interrupted(where: dict[str, Any]) -> None:
    async with TestCluster(Known(), **where) as cluster:
        sharding = cluster.runner.sharding
        entity, id = EntityType("Late"), EntityId("l")
        call = asyncio.create_task(cluster.client.entity(Late, "l").say("x"))
        await waiting(cluster, 1)
        address = EntityAddress(sharding.get_shard_id(entity, id), entity, id)
        parked = _parked(cluster)
        await sharding.interrupt(Interrupt(request_id=parked, address=address))
        with pytest.raises(RequestFailed, match="ended"):
            await call
        await waiting(cluster, 0)
        exit = await (await sharding.await_reply(parked))
    assert isinstance(exit, Interrupted)


def _parked(cluster: TestCluster) -> Any:
    incarnation = cluster.runner._incarnation
    assert incarnation is not None
    (parked,) = incarnation.delivery.parking._rows["Late"].values()
    return parked.row.envelope.request_id
