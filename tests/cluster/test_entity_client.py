"""Messages by name, for senders that do not have the entity's class."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine import (
    ConfigurationError,
    Entity,
    EntityType,
    InvalidPayload,
    PayloadConflict,
    Runner,
    Settings,
    Success,
    Uninterruptible,
    Workflow,
    rpc,
)
from engine.core.ids import EntityId
from engine.testing import TestCluster

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Shelf(Entity):
    def __init__(self) -> None:
        self.count = 0

    @rpc
    async def put(self, count: int, *, note: str = "") -> str:
        self.count += count
        return f"{self.count}{note}"

    @rpc(key=lambda order: order, uninterruptible=Uninterruptible.CLIENT)
    async def take(self, order: str) -> int:
        self.count -= 1
        return self.count

    @rpc
    async def told(self) -> dict[str, str | None]:
        return {"trace": self.trace, **self.headers}


class Bulk(Shelf):
    shard_group = "bulk"


class Nothing(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        return request


SHELF = EntityType("Shelf")


async def test_arguments_are_plain_values_by_name_or_encoded(where: dict[str, Any]) -> None:
    async with TestCluster(Shelf(), **where) as cluster, asyncio.timeout(10):
        client = cluster.runner.sharding.make_client(SHELF)
        assert client.entity_type == SHELF
        assert await (await client.send("a", "put", {"count": 2, "note": "!"})) == Success(b'"2!"')
        assert await (await client.send("a", "put", payload=b'{"count": 3}')) == Success(b'"5"')
        await client.notify("a", "put", {"count": 1})
        assert await (await client.send("a", "put", {"count": 0})) == Success(b'"6"')


async def test_arguments_that_do_not_fit_are_refused_where_the_type_is_known() -> None:
    async with TestCluster(Shelf()) as cluster:
        client = cluster.runner.sharding.make_client(SHELF)
        with pytest.raises(InvalidPayload, match="count: Input should be a valid integer"):
            await client.send("a", "put", {"count": "many"})
        with pytest.raises(TypeError, match="count"):
            await client.send("a", "put")
        with pytest.raises(ConfigurationError, match=r"arguments or payload= to Shelf\.put"):
            await client.send("a", "put", {"count": 1}, payload=b"{}")
        with pytest.raises(ConfigurationError, match="cannot be named 'p u t'"):
            await client.send("a", "p u t")
        with pytest.raises(InvalidPayload, match="the id of a Shelf must be a non-empty"):
            await client.send("", "put", {"count": 1})


async def test_options_sit_on_the_client_and_what_rpc_says_holds(where: dict[str, Any]) -> None:
    async with TestCluster(Shelf(), **where) as cluster, asyncio.timeout(20):
        sharding = cluster.runner.sharding
        client = sharding.make_client(SHELF)
        once = client.options(key="k")
        first = await once.send("a", "put", {"count": 1})
        again = await once.send("a", "put", {"count": 1})
        assert first.request_id == again.request_id
        assert await again == await first == Success(b'"1"')
        with pytest.raises(PayloadConflict, match=r"to Shelf/a put was used before"):
            await once.send("a", "put", {"count": 2})
        assert await (await client.send("a", "put", {"count": 1})) == Success(b'"2"')
        taken = [await client.send("a", "take", {"order": "o-1"}) for _ in range(3)]
        assert [await each for each in taken] == [Success(b"1")] * 3
        stored = await cluster.runner._node.storage.request(taken[0].request_id)
        assert stored is not None
        assert stored.uninterruptible is Uninterruptible.CLIENT
        traced = client.options(headers={"tenant": "blue"}, trace=TRACE)
        told = await (await traced.send("a", "told"))
        assert told == Success(b'{"trace":"' + TRACE.encode() + b'","tenant":"blue"}')
        assert await (await client.send("a", "told")) == Success(b'{"trace":null}')


async def test_a_key_is_the_same_by_name_and_by_class() -> None:
    async with TestCluster(Shelf()) as cluster, asyncio.timeout(10):
        client = cluster.runner.sharding.make_client(SHELF).options(key="k")
        assert await (await client.send("a", "put", {"count": 4})) == Success(b'"4"')
        assert await cluster.client.entity(Shelf, "a", key="k").put(4) == "4"


async def test_a_message_may_be_put_off() -> None:
    async with TestCluster(Shelf()) as cluster:
        client = cluster.runner.sharding.make_client(SHELF)
        soon = client.options(at=cluster.clock.now() + timedelta(minutes=1))
        receiver = await soon.send("a", "put", {"count": 1})
        await cluster.advance(timedelta(seconds=59))
        assert await cluster.runner.sharding.replies_for(receiver.request_id) == []
        await cluster.advance(timedelta(seconds=2))
        async with asyncio.timeout(10):
            assert await receiver == Success(b'"1"')
        with pytest.raises(ConfigurationError, match="aware datetime"):
            client.options(at=datetime(2030, 1, 1, tzinfo=UTC).replace(tzinfo=None))


@pytest.mark.parametrize(
    "options", [{"headers": {"a": 1}}, {"headers": [("a", "b")]}, {"trace": "00-abc"}]
)
def test_options_that_could_not_be_stored_are_refused(options: dict[str, Any]) -> None:
    client = Runner(Settings(dsn="memory")).register(Shelf()).sharding.make_client(SHELF)
    with pytest.raises(InvalidPayload, match=r"header|traceparent"):
        client.options(**options)


async def test_a_type_of_other_runners_is_found_in_the_group_they_serve_it_in(
    where: dict[str, Any],
) -> None:
    if not where:
        where = {"database": None}
    async with TestCluster(Bulk(), **{**where, "groups": ("bulk",)}) as bulk:
        if "database" in where:
            where = {"database": bulk.database}
        async with TestCluster(Shelf(), **where) as cluster, asyncio.timeout(10):
            sharding = cluster.runner.sharding
            client = sharding.make_client(EntityType("Bulk"))
            assert await (await client.send("a", "put", {"count": 1})) == Success(b'"1"')
            assert sharding.get_shard_id(EntityType("Bulk"), EntityId("a")).group == "bulk"


async def test_workflows_and_singletons_are_no_entities() -> None:
    async with TestCluster(Nothing()) as cluster:
        with pytest.raises(ConfigurationError, match=r"start workflows with client\.start"):
            cluster.runner.sharding.make_client(EntityType("Nothing"))
        with pytest.raises(ConfigurationError, match="cannot be named"):
            cluster.runner.sharding.make_client(EntityType("no name"))


async def test_nothing_is_sent_by_a_runner_that_is_not_entered() -> None:
    client = Runner(Settings(dsn="memory")).register(Shelf()).sharding.make_client(SHELF)
    with pytest.raises(ConfigurationError, match="while the runner is entered"):
        await client.send("a", "put", {"count": 1})
