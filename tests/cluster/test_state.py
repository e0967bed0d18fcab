"""What an entity keeps durably: saved with the reply, or not at all."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Annotated, Any

import asyncpg
import pytest
from pydantic import AfterValidator, BaseModel

from engine import ConfigurationError, Entity, EntityDefect, RequestFailed, State, rpc
from engine.entities import ask_to_replace_state, replaced
from engine.storage.memory_database import Fault
from engine.testing import TestCluster
from tests.eventually import eventually


@pytest.fixture(params=["memory", "postgres", "postgres without notifications"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "memory":
        return {}
    dsn = request.getfixturevalue("dsn")
    notifications = "without" not in request.param
    return {"dsn": dsn, "notifications": notifications, "shards_per_group": 2}


class Sum(BaseModel):
    total: int = 0
    log: list[str] = []


class Account(Entity):
    state = State(Sum)
    concurrency = 4

    def __init__(self, gate: asyncio.Event | None = None) -> None:
        self.gate = gate or asyncio.Event()

    @rpc
    async def add(self, n: int) -> int:
        before = self.state.total
        await asyncio.sleep(0)
        self.state.total = before + n
        self.state.log.append(f"add {n}")
        return self.state.total

    @rpc
    async def reset(self) -> None:
        self.state = Sum(total=0, log=["reset"])

    @rpc
    async def add_then(self, n: int, how: str) -> None:
        self.state.total += n
        if how == "raise":
            raise LookupError("after the change")
        if how == "break":
            raise EntityDefect("after the change")
        if how == "wait":
            await self.gate.wait()
        if how == "spoil":
            self.state.log = [b"\xff"]  # type: ignore[list-item]

    @rpc(readonly=True)
    async def total(self) -> int:
        return self.state.total

    @rpc(readonly=True)
    async def cheat(self) -> int:
        self.state.total += 1000
        return self.state.total

    @rpc
    async def nothing(self) -> int:
        return self.state.total


async def test_what_a_handler_changed_is_there_after_the_entity_has_left_memory(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Account(), **where) as cluster:
        account = cluster.client.entity(Account, "a")
        assert [await account.add(1), await account.add(2)] == [1, 3]
        await cluster.crash()
        assert await account.total() == 3
        await account.reset()
        await cluster.crash()
        assert [await account.total(), await account.add(5)] == [0, 5]


async def test_writers_exclude_each_other_whatever_the_concurrency(where: dict[str, Any]) -> None:
    async with TestCluster(Account(), **where) as cluster:
        account = cluster.client.entity(Account, "a")
        totals = await asyncio.gather(*(account.add(1) for _ in range(50)))
        assert sorted(totals) == list(range(1, 51))
        await cluster.crash()
        assert await account.total() == 50


async def test_a_handler_that_raises_has_changed_nothing(where: dict[str, Any]) -> None:
    async with TestCluster(Account(), **where) as cluster:
        account = cluster.client.entity(Account, "a")
        await account.add(1)
        with pytest.raises(RequestFailed, match="after the change"):
            await account.add_then(10, "raise")
        assert [await account.total(), await account.nothing()] == [1, 1]


async def test_a_state_that_does_not_fit_its_model_is_the_callers_failure(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Account(), **where) as cluster:
        account = cluster.client.entity(Account, "a")
        with pytest.raises(RequestFailed, match="state"):
            await account.add_then(10, "spoil")
        assert [await account.total(), await account.add(1)] == [0, 1]


async def test_readers_run_beside_a_writer_and_see_what_was_saved_last(
    where: dict[str, Any],
) -> None:
    gate = asyncio.Event()
    async with TestCluster(Account(gate), **where) as cluster:
        account = cluster.client.entity(Account, "a")
        await account.add(1)
        await cluster.client.tell(account.add_then, 10, "wait")
        async with asyncio.timeout(10):
            assert [await account.total(), await account.total()] == [1, 1]
        gate.set()
        await eventually(lambda: _is(account, 11))


async def _is(account: Account, total: int) -> bool:
    return await account.total() == total


async def test_a_reader_that_changes_the_state_fails_and_nothing_is_saved(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Account(), **where) as cluster:
        account = cluster.client.entity(Account, "a")
        with pytest.raises(RequestFailed, match="readonly"):
            await account.cheat()
        assert await account.total() == 0


async def test_a_defect_loses_the_change_and_the_request_is_handled_again(
    where: dict[str, Any],
) -> None:
    where = {**where, "max_deliveries": 4}
    async with TestCluster(Account(), **where) as cluster:
        account = cluster.client.entity(Account, "a")
        broken = asyncio.ensure_future(account.add_then(10, "break"))
        for _ in range(20):
            await cluster.settle()
            if "dsn" not in where:
                await cluster.advance(timedelta(seconds=10))
        async with asyncio.timeout(20):
            with pytest.raises(RequestFailed, match="DeliveryFailed"):
                await broken
            assert await account.total() == 0


async def test_the_change_is_in_the_table_when_the_caller_has_the_answer(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Account(), **where) as cluster:
        account = cluster.client.entity(Account, "a")
        for n in range(1, 6):
            await account.add(1)
            states = await cluster.client._node.storage.states([("Account", "a")])
            stored = states["Account", "a"]
            assert stored.version == n
            assert json.loads(stored.payload)["total"] == n


async def test_a_handler_that_changes_nothing_writes_no_state() -> None:
    async with TestCluster(Account()) as cluster:
        account = cluster.client.entity(Account, "a")
        await account.nothing()
        assert await cluster.client._node.storage.states([("Account", "a")]) == {}


class Till(Account):
    @rpc(persisted=False)
    async def take(self, n: int) -> int:
        self.state.total += n
        return self.state.total


async def test_a_volatile_call_is_told_when_its_shard_is_lost_before_its_change_was_saved(
    where: dict[str, Any],
) -> None:
    async with asyncio.timeout(40), TestCluster(Till(), **where) as cluster:
        till = cluster.client.entity(Till, "t")
        assert await till.take(1) == 1
        async with _next_write_lost(cluster):
            with pytest.raises(RequestFailed, match="RunnerLost"):
                await till.take(10)
        assert [await till.total(), await till.add(1)] == [1, 2]


@asynccontextmanager
async def _next_write_lost(cluster: TestCluster) -> AsyncGenerator[None]:
    """The runner loses its shards while it saves the next change."""
    if cluster.database is not None:
        cluster.database.fail_next_flush(Fault.BEFORE_COMMIT)
        yield
        return
    connection = await asyncpg.connect(cluster.settings.dsn)
    try:
        async with connection.transaction(), asyncio.TaskGroup() as group:
            await connection.execute("lock engine.entity_states in share row exclusive mode")
            group.create_task(_crash_at_write(cluster, connection))
            yield
    finally:
        await connection.close()


async def _crash_at_write(cluster: TestCluster, connection: asyncpg.Connection) -> None:
    waits = (
        "select 1 from pg_locks where relation = 'engine.entity_states'::regclass and not granted"
    )
    await eventually(lambda: connection.fetchval(waits))
    await cluster.crash()


def _small(number: int) -> int:
    if number > 5:
        raise RuntimeError("too large")
    return number


class Strict(BaseModel):
    number: Annotated[int, AfterValidator(_small)] = 0


class Loose(BaseModel):
    number: int = 0


class Wider(Loose):
    unit: str = "kg"


class Scales(Entity):
    state = State(Strict)

    @rpc
    async def put(self, number: int) -> int:
        self.state.number = number
        return number

    @rpc
    async def weigh(self) -> int:
        return self.state.number

    @rpc(readonly=True)
    async def look(self) -> int:
        return self.state.number


class LooseScales(Scales):
    name = "Scales"
    state = State(Loose)  # type: ignore[assignment]


class WiderScales(Scales):
    name = "Scales"
    state = State(Wider)  # type: ignore[assignment]


async def test_what_would_not_validate_when_it_is_read_again_is_not_saved(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Scales(), **where) as cluster:
        scales = cluster.client.entity(Scales, "s")
        await scales.put(3)
        with pytest.raises(RequestFailed, match="too large"):
            await scales.put(9)
        assert [await scales.look(), await scales.weigh()] == [3, 3]
        await cluster.crash()
        assert await scales.weigh() == 3


async def test_a_state_that_a_later_model_refuses_is_its_callers_failure_until_it_is_replaced(
    where: dict[str, Any],
) -> None:
    async with TestCluster(LooseScales(), **where) as before:
        await before.client.entity(LooseScales, "s").put(9)
    where = {**where, "database": before.database}
    async with asyncio.timeout(20), TestCluster(Scales(), **where) as cluster:
        scales = cluster.client.entity(Scales, "s")
        for call in (scales.look, scales.weigh, scales.look):
            with pytest.raises(RequestFailed, match="outlast state"):
                await call()
        node = cluster.client._node
        request = await ask_to_replace_state(node, "Scales", "s", version=1, value=b'{"number":4}')
        assert replaced("Scales", "s", await node.replies.wait(request)) == 2
        assert [await scales.look(), await scales.weigh(), await scales.put(5)] == [4, 4, 5]


async def test_a_reader_may_read_what_an_earlier_model_has_written(where: dict[str, Any]) -> None:
    async with TestCluster(LooseScales(), **where) as before:
        await before.client.entity(LooseScales, "s").put(2)
    where = {**where, "database": before.database}
    async with TestCluster(WiderScales(), **where) as cluster:
        scales = cluster.client.entity(WiderScales, "s")
        assert [await scales.look(), await scales.weigh(), await scales.look()] == [2, 2, 2]
        states = await cluster.client._node.storage.states([("Scales", "s")])
        assert states["Scales", "s"].version == 1


async def test_the_state_is_out_of_reach_outside_the_handlers() -> None:
    with pytest.raises(ConfigurationError, match="inside the entity's handlers"):
        _ = Account().state


def test_two_states_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="one model"):

        class Two(Entity):
            one = State(Sum)
            two = State(Sum)


async def test_a_state_that_cannot_begin_is_refused_at_registration() -> None:
    class Needs(BaseModel):
        owner: str

    class Owned(Entity):
        state = State(Needs)

    with pytest.raises(ConfigurationError, match="initial="):
        TestCluster(Owned()).runner.register(Owned())


async def test_the_initial_state_is_what_its_maker_gives() -> None:
    class Needs(BaseModel):
        owner: str

    class Owned(Entity):
        state = State(Needs, initial=lambda: Needs(owner="nobody"))

        @rpc
        async def owner(self) -> str:
            return self.state.owner

    async with TestCluster(Owned()) as cluster:
        assert await cluster.client.entity(Owned, "a").owner() == "nobody"
