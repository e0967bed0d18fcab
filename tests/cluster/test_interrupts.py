"""Ending a request early: stored, and obeyed by whoever owns the request by then."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from engine import (
    Entity,
    EntityAddress,
    EntityId,
    EntityType,
    EnvelopeRequest,
    Interrupt,
    Interrupted,
    Snowflake,
    Success,
    Uninterruptible,
    Workflow,
    rpc,
)
from engine.testing import TestCluster
from tests.eventually import eventually


@pytest.fixture(params=["memory", "postgres", "postgres without notifications"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "memory":
        return {}
    dsn = request.getfixturevalue("dsn")
    notifications = "without" not in request.param
    return {"dsn": dsn, "notifications": notifications, "shards_per_group": 2}


class Long(Entity):
    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.seen: Counter[str] = Counter()

    @rpc
    async def work(self) -> str:
        self.seen["began"] += 1
        try:
            await self.open.wait()
        finally:
            self.seen["cleaned up"] += 1
        self.seen["ended"] += 1
        return "done"

    @rpc
    async def stubborn(self) -> str:
        self.seen["began"] += 1
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            return "made the best of it"
        return "done"


async def _send(cluster: TestCluster, tag: str, **options: Any) -> EnvelopeRequest:
    sharding = cluster.runner.sharding
    kind, id = EntityType("Long"), EntityId("a")
    envelope = EnvelopeRequest(
        request_id=sharding.snowflake().next(),
        address=EntityAddress(sharding.get_shard_id(kind, id), kind, id),
        tag=tag,
        payload=b"{}",
        **options,
    )
    await sharding.notify(envelope)
    return envelope


async def _interrupt(cluster: TestCluster, envelope: EnvelopeRequest) -> None:
    await cluster.runner.sharding.interrupt(
        Interrupt(request_id=envelope.request_id, address=envelope.address)
    )


async def _exit(cluster: TestCluster, request_id: Snowflake) -> Any:
    async with asyncio.timeout(20):
        return await (await cluster.runner.sharding.await_reply(request_id))


async def test_a_running_request_is_cancelled_cleans_up_and_ends_as_interrupted(
    where: dict[str, Any],
) -> None:
    long = Long()
    async with TestCluster(long, **where) as cluster:
        envelope = await _send(cluster, "work")
        await eventually(lambda: long.seen["began"])
        await _interrupt(cluster, envelope)
        assert await _exit(cluster, envelope.request_id) == Interrupted()
        assert long.seen == {"began": 1, "cleaned up": 1}
        await _interrupt(cluster, envelope)  # once more, after its exit
        await _left_nothing(cluster)


async def test_a_queued_request_ends_without_having_run(where: dict[str, Any]) -> None:
    long = Long()
    async with TestCluster(long, **where) as cluster:
        first = await _send(cluster, "work")
        second = await _send(cluster, "work")
        await eventually(lambda: long.seen["began"])
        await cluster.runner.sharding.poll_storage()
        await _interrupt(cluster, second)
        assert await _exit(cluster, second.request_id) == Interrupted()
        long.open.set()
        assert await _exit(cluster, first.request_id) == Success(b'"done"')
        assert long.seen["began"] == 1
        await _left_nothing(cluster)


async def test_a_request_for_later_ends_at_once(where: dict[str, Any]) -> None:
    long = Long()
    async with TestCluster(long, **where) as cluster:
        later = cluster.clock.now() + timedelta(hours=1)
        envelope = await _send(cluster, "work", deliver_at=later)
        await _interrupt(cluster, envelope)
        assert await _exit(cluster, envelope.request_id) == Interrupted()
        await _left_nothing(cluster)
        if "dsn" not in where:
            await cluster.advance(timedelta(hours=2))
        assert not long.seen


async def test_a_handler_that_ends_well_all_the_same_has_its_result(where: dict[str, Any]) -> None:
    long = Long()
    async with TestCluster(long, **where) as cluster:
        envelope = await _send(cluster, "stubborn")
        await eventually(lambda: long.seen["began"])
        await _interrupt(cluster, envelope)
        assert await _exit(cluster, envelope.request_id) == Success(b'"made the best of it"')
        await _left_nothing(cluster)


@pytest.mark.parametrize(
    ("mode", "ends"),
    [
        (Uninterruptible.NO, False),
        (Uninterruptible.CLIENT, True),
        (Uninterruptible.SERVER, False),
        (Uninterruptible.BOTH, True),
    ],
)
async def test_of_the_four_modes_two_ignore_the_interrupts_of_clients(
    where: dict[str, Any], mode: Uninterruptible, ends: bool
) -> None:
    long = Long()
    async with TestCluster(long, **where) as cluster:
        envelope = await _send(cluster, "work", uninterruptible=mode)
        await eventually(lambda: long.seen["began"])
        await _interrupt(cluster, envelope)
        await cluster.runner.sharding.poll_storage()
        await cluster.settle()
        long.open.set()
        exit = await _exit(cluster, envelope.request_id)
        assert exit == (Success(b'"done"') if ends else Interrupted())
        await _left_nothing(cluster)


async def test_an_interrupt_reaches_the_next_owner(where: dict[str, Any]) -> None:
    """The runner dies with the interrupt stored and the request running."""
    long = Long()
    async with TestCluster(long, **where) as cluster:
        envelope = await _send(cluster, "work")
        await eventually(lambda: long.seen["began"])
        interrupt = Interrupt(request_id=envelope.request_id, address=envelope.address)
        stored = await cluster.client._node.storage.interrupt([interrupt])
        assert stored == [True]
        await cluster.crash()
        assert await _exit(cluster, envelope.request_id) == Interrupted()
        assert not long.seen["ended"]
        await _left_nothing(cluster)


async def test_what_the_loss_of_a_runner_cut_off_is_handled_again(where: dict[str, Any]) -> None:
    long = Long()
    async with TestCluster(long, **where) as cluster:
        envelope = await _send(cluster, "work")
        await eventually(lambda: long.seen["began"])
        await cluster.crash()
        await eventually(lambda: long.seen["began"] == 2)
        long.open.set()
        assert await _exit(cluster, envelope.request_id) == Success(b'"done"')


class Waits(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        await self.sleep(timedelta(hours=1))
        return request


async def test_an_execution_is_interrupted_by_its_request_too(where: dict[str, Any]) -> None:
    async with TestCluster(Waits(), Long(), **where) as cluster:
        execution = await cluster.client.start(Waits, "x")
        request_id = execution.request_id
        assert request_id is not None
        stored = await cluster.client._node.storage.request(request_id)
        assert stored is not None
        await _interrupt(cluster, stored)
        assert await _exit(cluster, request_id) == Interrupted()


async def _left_nothing(cluster: TestCluster) -> None:
    """No inbox row is left of what the test has sent."""

    async def nothing() -> bool:
        await cluster.settle()
        incarnation = cluster.runner._incarnation
        assert incarnation is not None
        for lane in incarnation.delivery.lanes:
            await lane.sweep()
        in_flight = [seq for s in incarnation.delivery.shards.values() for seq in s.in_flight]
        host: Any = incarnation.delivery._hosts["Long"]
        return not in_flight and not host._messages

    await eventually(nothing)
