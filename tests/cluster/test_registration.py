"""What is registered while a runner serves, and who hears of it."""

import asyncio
from functools import partial
from typing import Any

import pytest

from engine import (
    ConfigurationError,
    Entity,
    EntityRegistered,
    EntityType,
    Runner,
    Settings,
    ShuttingDown,
    Singleton,
    SingletonContext,
    SingletonRegistered,
    Success,
    Workflow,
    rpc,
)
from engine.cluster.membership import Membership
from engine.testing import TestCluster
from tests.eventually import eventually


class Early(Entity):
    @rpc
    async def greet(self) -> str:
        return f"early {self.entity_id}"


class Late(Entity):
    @rpc
    async def greet(self) -> str:
        return f"late {self.entity_id}"


class Latest(Entity):
    @rpc
    async def greet(self) -> str:
        return f"latest {self.entity_id}"


class Later(Entity):
    shard_group = "later"


class Nothing(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        return request


class Watch(Singleton):
    async def run(self, context: SingletonContext) -> None:
        await context.cancelled.wait()


async def until_cancelled(context: SingletonContext) -> None:
    await context.cancelled.wait()


async def test_a_type_that_is_registered_late_is_served_and_gets_what_waited_for_it(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Early(), **where) as cluster:
        sharding = cluster.runner.sharding
        waiting = await sharding.make_client(EntityType("Late")).send("a", "greet")
        await sharding.poll_storage()
        assert await sharding.replies_for(waiting.request_id) == []

        await sharding.register_entity(Late())

        async with asyncio.timeout(10):
            assert await waiting == Success(b'"late a"')
            assert await cluster.client.entity(Late, "b").greet() == "late b"


async def test_what_is_registered_while_a_runner_begins_or_comes_back_is_served(
    where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has joined its peers, and neither lanes nor shards yet."""
    cluster = TestCluster(Early(), **where)
    new: list[Entity] = [Late()]
    enter = Membership.__aenter__

    async def entered(membership: Membership) -> Membership:
        await enter(membership)
        cluster.runner.register(*new)
        new.clear()
        return membership

    monkeypatch.setattr(Membership, "__aenter__", entered)
    async with asyncio.timeout(20), cluster:
        assert await cluster.client.entity(Late, "a").greet() == "late a"
        new.append(Latest())
        assert cluster.runner._incarnation is not None
        cluster.runner._incarnation._membership._lose()  # type: ignore[union-attr]
        assert await cluster.client.entity(Latest, "b").greet() == "latest b"


async def test_the_register_says_what_was_registered_late(where: dict[str, Any]) -> None:
    async def registered(cluster: TestCluster) -> dict[str, str]:
        (row,) = await cluster.runner._node.storage.runners()
        return dict(row.types)

    async with TestCluster(Early(), **where) as cluster:
        await cluster.runner.sharding.register_entity(Late())
        await cluster.runner.sharding.register_singleton("janitor", until_cancelled)

        async def complete() -> bool:
            return await registered(cluster) == {
                "Early": "entity:default",
                "Late": "entity:default",
                "janitor": "singleton:default",
            }

        await eventually(complete)


async def test_a_singleton_may_be_a_function_and_begins_at_once(where: dict[str, Any]) -> None:
    log: list[str] = []

    async def sweep(context: SingletonContext) -> None:
        log.append("begins")
        await context.cancelled.wait()
        log.append("was asked to end")

    async with TestCluster(Early(), **where) as cluster:
        await cluster.runner.sharding.register_singleton("sweeper", sweep)
        await eventually(lambda: log == ["begins"])
        with pytest.raises(ConfigurationError, match="two definitions are registered as 'sweeper'"):
            await cluster.runner.sharding.register_singleton("sweeper", sweep)
        with pytest.raises(ConfigurationError, match=r"singleton .* cannot be named 'a b'"):
            await cluster.runner.sharding.register_singleton("a b", sweep)
    assert log == ["begins", "was asked to end"]


async def test_a_singleton_of_a_group_that_is_not_served_here_does_not_run_here() -> None:
    ran: list[str] = []

    async def note(name: str, context: SingletonContext) -> None:
        ran.append(name)

    async with TestCluster(Early(), groups=("default",)) as cluster:
        sharding = cluster.runner.sharding
        await sharding.register_singleton("abroad", partial(note, "abroad"), shard_group="abroad")
        await sharding.register_singleton("here", partial(note, "here"))
        await eventually(lambda: ran)
    assert ran == ["here"]


async def test_registrations_are_told_from_the_subscription_on_until_the_runner_stops() -> None:
    heard: list[object] = []
    async with TestCluster(Early()) as cluster:
        sharding = cluster.runner.sharding
        events = sharding.registration_events()
        given_up = sharding.registration_events()
        await sharding.register_entity(Later())
        cluster.runner.register(Nothing(), Watch())
        await sharding.register_singleton("janitor", until_cancelled, shard_group="night")
        assert await anext(given_up) == EntityRegistered(EntityType("Later"), "later")
        del given_up
        assert len(cluster.runner._events._subscriptions) == 1
        await sharding.shutdown()
        heard += [event async for event in events]
    assert heard == [
        EntityRegistered(EntityType("Later"), "later"),
        EntityRegistered(EntityType("Nothing"), "default"),
        SingletonRegistered("Watch", "default"),
        SingletonRegistered("janitor", "night"),
    ]
    assert [event async for event in events] == []


async def test_what_is_registered_before_the_runner_is_entered_is_told_too() -> None:
    runner = Runner(Settings(dsn="memory"))
    events = runner.sharding.registration_events()
    runner.register(Early())
    assert await anext(events) == EntityRegistered(EntityType("Early"))


async def test_a_runner_that_has_stopped_registers_nothing() -> None:
    async with TestCluster(Early()) as cluster:
        await cluster.runner.sharding.shutdown()
        with pytest.raises(ShuttingDown, match="register with another"):
            await cluster.runner.sharding.register_entity(Late())
