"""The orchestrator's own interface, on memory and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine import (
    Entity,
    EntityAddress,
    EntityId,
    EntityType,
    EnvelopeRequest,
    Failure,
    PayloadConflict,
    ReplyWithExit,
    Sharding,
    Snowflake,
    Success,
    rpc,
)
from engine.core.reply import Defect
from engine.testing import TestCluster


class Ledger(Entity):
    def __init__(self) -> None:
        self.log: list[str] = []
        self.running = 0
        self.most = 0

    @rpc
    async def add(self, n: int) -> int:
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0)
        self.running -= 1
        self.log.append(f"{self.entity_id}:{n}")
        return n

    @rpc
    async def fail(self) -> None:
        raise LookupError("nothing there")


class Wide(Ledger):
    concurrency = 3


TYPE, WIDE = EntityType("Ledger"), EntityType("Wide")


@pytest.fixture(params=["memory", "postgres", "postgres without notifications"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "memory":
        return {}
    dsn = request.getfixturevalue("dsn")
    return {"dsn": dsn, "notifications": "without" not in request.param}


@pytest.fixture
async def cluster(where: dict[str, Any]) -> AsyncIterator[TestCluster]:
    async with TestCluster(Ledger(), Wide(), **where) as cluster:
        yield cluster


async def envelope(
    cluster: TestCluster,
    tag: str = "add",
    payload: bytes = b'{"n":1}',
    *,
    id: str = "a",
    type: EntityType = TYPE,
    key: str | None = None,
) -> EnvelopeRequest:
    sharding = cluster.runner.sharding
    await cluster.client.tell(cluster.client.entity(Ledger, "warm-up").add, 0)
    shard = sharding.get_shard_id(type, EntityId(id))
    return EnvelopeRequest(
        request_id=sharding.snowflake().next(),
        address=EntityAddress(shard, type, EntityId(id)),
        tag=tag,
        payload=payload,
        key=key,
    )


async def test_a_sent_request_is_answered_once_and_its_reply_stays_readable(
    cluster: TestCluster,
) -> None:
    sharding: Sharding = cluster.runner.sharding
    request = await envelope(cluster)
    async with asyncio.timeout(10):
        exit = await (await sharding.send(request))
    assert exit == Success(b"1")
    assert await sharding.replies_for(request.request_id) == [
        ReplyWithExit(request_id=request.request_id, exit=exit)
    ]


async def test_a_reply_is_awaited_by_anybody_before_and_after_it_came(cluster: TestCluster) -> None:
    sharding = cluster.runner.sharding
    request = await envelope(cluster)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:

        async def wait() -> object:
            return await (await sharding.await_reply(request.request_id))

        before = [group.create_task(wait()) for _ in range(20)]
        await asyncio.sleep(0)
        await sharding.notify(request)
        assert await wait() == Success(b"1")
    assert {task.result() for task in before} == {Success(b"1")}
    assert await wait() == Success(b"1")


async def test_an_unknown_request_has_no_replies(cluster: TestCluster) -> None:
    assert await cluster.runner.sharding.replies_for(Snowflake(1)) == []


async def test_requests_with_one_key_run_once_and_share_the_reply(cluster: TestCluster) -> None:
    sharding = cluster.runner.sharding
    requests = [await envelope(cluster, key="once") for _ in range(5)]
    async with asyncio.timeout(10):
        exits = [await (await sharding.send(each)) for each in requests]
    assert exits == [Success(b"1")] * 5
    with pytest.raises(PayloadConflict, match="once"):
        await sharding.send(await envelope(cluster, payload=b'{"n":2}', key="once"))


async def test_a_handlers_error_an_unknown_handler_and_a_bad_payload_are_answers_too(
    cluster: TestCluster,
) -> None:
    sharding = cluster.runner.sharding
    async with asyncio.timeout(10):
        failed = await (await sharding.send(await envelope(cluster, "fail", b"{}")))
        unknown = await (await sharding.send(await envelope(cluster, "nothing", b"{}")))
        wrong = await (await sharding.send(await envelope(cluster, "add", b'{"n":"x"}')))
        broken = await (await sharding.send(await envelope(cluster, "add", b"\xff{")))
        after = await (await sharding.send(await envelope(cluster)))
    assert isinstance(failed, Failure)
    assert failed.error.type == "LookupError"
    assert isinstance(unknown, Defect)
    assert "nothing" in unknown.error.message
    assert isinstance(wrong, Defect)
    assert "n:" in wrong.error.message
    assert isinstance(broken, Defect)
    assert after == Success(b"1")


@pytest.mark.parametrize(("type", "most"), [(TYPE, 1), (WIDE, 3)])
async def test_an_entity_handles_as_many_at_once_as_it_says_and_in_order(
    cluster: TestCluster, type: EntityType, most: int
) -> None:
    sharding = cluster.runner.sharding
    prototype = next(p for p in cluster.prototypes if p.name == type)
    assert isinstance(prototype, Ledger)
    prototype.log.clear()
    requests = [
        await envelope(cluster, payload=b'{"n":%d}' % n, type=type, id="o") for n in range(30)
    ]
    for each in requests:
        await sharding.notify(each)
    async with asyncio.timeout(10):
        for each in requests:
            await (await sharding.await_reply(each.request_id))
    mine = [entry for entry in prototype.log if entry.startswith("o:")]
    if most == 1:
        assert mine == [f"o:{n}" for n in range(30)]
    assert sorted(mine) == sorted(f"o:{n}" for n in range(30))


async def test_polling_storage_delivers_what_no_doorbell_told_of(cluster: TestCluster) -> None:
    sharding = cluster.runner.sharding
    request = await envelope(cluster)
    await sharding.notify(request)
    async with asyncio.timeout(10):
        await sharding.poll_storage()
        await (await sharding.await_reply(request.request_id))
    assert sharding.active_entity_count() >= 1
    assert sharding.has_shard_id(request.address.shard)
    assert not sharding.is_shutdown()
