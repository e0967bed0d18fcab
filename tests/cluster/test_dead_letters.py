"""What keeps killing its process is set aside; what was beside it is not, and gets its answer."""

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from typing import Any

import pytest

from engine import (
    Deferred,
    Entity,
    NotFound,
    RequestFailed,
    Status,
    Workflow,
    activity,
    rpc,
)
from engine.storage.protocol import SUSPECT
from engine.testing import TestCluster
from tests.cluster.deaths import QUICK, Reaper, deadly
from tests.eventually import eventually

SECONDS = timedelta(seconds=100)

pytestmark = pytest.mark.timeout(200)


class Fate:
    """What a test and its handlers have in common."""

    def __init__(self) -> None:
        self.reaper: Reaper | None = None
        self.deadly = True
        self.began: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.log: list[str] = []
        self.patience: float | None = 0.5
        self.gate = asyncio.Event()

    async def rest(self, who: str) -> None:
        """What needs more time than there is before a killer's next strike."""
        self.began[who] += 1
        if self.patience is None:
            await self.gate.wait()
        else:
            await asyncio.sleep(self.patience)
        self.ended[who] += 1

    def seen(self, *names: str, times: int) -> bool:
        """Whether each of them has begun so many times."""
        return all(self.began[name] >= times for name in names)

    async def strike(self) -> None:
        if self.deadly and self.reaper is not None:
            await self.reaper.strike()


class Mine(Entity):
    """Some of its messages kill the process they are handled in."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate

    @rpc
    async def explode(self, n: int) -> str:
        self.fate.began[self.entity_id] += 1
        await self.fate.strike()
        return f"{n} is safe now"

    @rpc
    async def dig(self, n: int) -> int:
        self.fate.log.append(f"{self.entity_id} {n}")
        return n

    @rpc
    async def rest(self) -> str:
        await self.fate.rest(self.entity_id)
        return self.entity_id

    @rpc
    async def count(self, to: int) -> AsyncIterator[int]:
        for n in range(to):
            yield n
        await self.fate.strike()


class Narrow(Mine):
    mailbox_capacity = 1


class Dig(Workflow[int, int]):
    """Dies after each step, before the next one has ended."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate

    async def execute(self, request: int) -> int:
        total = 0
        for n in range(request):
            total += await self.step(n)
        return total

    @activity
    async def step(self, n: int) -> int:
        self.fate.began[f"step {n}"] += 1
        if n and self.fate.began[f"step {n}"] == 1:
            await self.fate.strike()
        return n


class Bomb(Workflow[str, str]):
    """Dies in its first step."""

    def __init__(self, fate: Fate) -> None:
        self.fate = fate

    async def execute(self, request: str) -> str:
        return await self.explode(request)

    @activity
    async def explode(self, what: str) -> str:
        self.fate.began[what] += 1
        await self.fate.strike()
        return f"{what} is safe now"


class Patient(Workflow[str, str]):
    """Is in one long step while others die."""

    go = Deferred(bool)

    def __init__(self, fate: Fate) -> None:
        self.fate = fate

    async def execute(self, request: str) -> str:
        return await self.rest(request)

    @activity
    async def rest(self, who: str) -> str:
        await self.fate.rest(who)
        return who


SERVED = [Mine, Narrow, Dig, Bomb, Patient]


@pytest.fixture(params=["memory", "postgres"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    if request.param == "memory":
        return QUICK
    return QUICK | {"dsn": request.getfixturevalue("dsn")}


@pytest.fixture
def fate() -> Fate:
    return Fate()


@pytest.fixture
async def cluster(where: dict[str, Any], fate: Fate) -> AsyncIterator[TestCluster]:
    async with served(fate, where) as cluster:
        yield cluster


@pytest.fixture
async def strict(where: dict[str, Any], fate: Fate) -> AsyncIterator[TestCluster]:
    """A cluster that gives up sooner."""
    async with served(fate, where | {"max_deliveries": 5}) as cluster:
        yield cluster


@asynccontextmanager
async def served(fate: Fate, settings: dict[str, Any]) -> AsyncGenerator[TestCluster]:
    async with (
        TestCluster(*(each(fate) for each in SERVED), **settings) as cluster,
        deadly(cluster) as fate.reaper,
    ):
        yield cluster


async def test_a_message_that_kills_its_process_is_a_dead_letter_after_as_many_deaths(
    cluster: TestCluster, fate: Fate
) -> None:
    with pytest.raises(RequestFailed, match="lost 10 times") as failed:
        await cluster.client.entity(Mine, "killer").explode(1)

    assert failed.value.error.type == "DeliveryFailed"
    assert fate.reaper is not None
    assert (fate.reaper.deaths, fate.began["killer"]) == (10, 10)
    (letter,) = [each async for each in cluster.client.dead_letters(Mine)]
    assert (letter.entity, letter.id, letter.method) == ("Mine", "killer", "explode")
    assert letter.payload == {"n": 1}
    assert letter.error == failed.value.error


async def test_those_beside_a_killer_get_through_with_one_answer_each(
    cluster: TestCluster, fate: Fate
) -> None:
    client = cluster.client
    async with asyncio.TaskGroup() as group:
        long = [group.create_task(client.entity(Mine, f"long-{n}").rest()) for n in range(10)]
        await eventually(lambda: len(fate.began) == 10)
        killers = [
            group.create_task(_failure(client.entity(Mine, f"killer-{n}").explode(n)))
            for n in range(2)
        ]
        short = [group.create_task(client.entity(Mine, f"short-{n}").dig(n)) for n in range(40)]

    assert [task.result() for task in long] == [f"long-{n}" for n in range(10)]
    assert [task.result() for task in short] == list(range(40))
    assert {task.result() for task in killers} == {"DeliveryFailed"}
    assert len([each async for each in client.dead_letters()]) == 2


async def test_an_execution_that_kills_its_process_is_blocked_and_says_why(
    cluster: TestCluster, fate: Fate
) -> None:
    execution = await cluster.client.start(Bomb, "b", key="b")
    await _status(execution, Status.BLOCKED)
    info = await execution.describe()

    assert fate.reaper is not None
    assert (fate.reaper.deaths, fate.began["b"]) == (10, 10)
    assert "lost 10 times" in info.why
    assert "outlast retry Bomb/b" in info.why
    await fate.reaper.kill()
    assert (await execution.describe()).status is Status.BLOCKED
    assert fate.began["b"] == 10


async def test_a_blocked_execution_goes_on_when_it_is_retried(
    strict: TestCluster, fate: Fate
) -> None:
    execution = await strict.client.start(Bomb, "b", key="b")
    await _status(execution, Status.BLOCKED)

    fate.deadly = False
    await execution.retry()

    assert await execution.join(SECONDS) == "b is safe now"
    with pytest.raises(NotFound, match="has ended"):
        await execution.retry()


async def test_a_retried_execution_that_still_kills_is_blocked_again(
    strict: TestCluster, fate: Fate
) -> None:
    execution = await strict.client.start(Bomb, "b", key="b")
    await _status(execution, Status.BLOCKED)

    await execution.retry()

    await eventually(lambda: fate.began["b"] == 10, timeout=100)
    await _status(execution, Status.BLOCKED)


async def test_an_execution_that_gets_on_between_deaths_is_never_blocked(
    cluster: TestCluster, fate: Fate
) -> None:
    execution = await cluster.client.start(Dig, 15, key="d")

    assert await execution.join(SECONDS) == sum(range(15))
    assert fate.reaper is not None
    assert fate.reaper.deaths == 14


async def test_executions_in_a_long_step_are_not_blamed_for_a_message_that_kills(
    cluster: TestCluster, fate: Fate
) -> None:
    client = cluster.client
    patients = [await client.start(Patient, f"p-{n}", key=f"p-{n}") for n in range(8)]
    await eventually(lambda: len(fate.began) == 8)
    await _failure(client.entity(Mine, "killer").explode(1))

    assert [await each.join(SECONDS) for each in patients] == [f"p-{n}" for n in range(8)]


async def test_long_messages_are_not_blamed_for_an_execution_that_kills(
    cluster: TestCluster, fate: Fate
) -> None:
    client = cluster.client
    async with asyncio.TaskGroup() as group:
        long = [group.create_task(client.entity(Mine, f"long-{n}").rest()) for n in range(8)]
        await eventually(lambda: len(fate.began) == 8)
        bomb = await client.start(Bomb, "b", key="b")
        await _status(bomb, Status.BLOCKED)

    assert [task.result() for task in long] == [f"long-{n}" for n in range(8)]


async def test_a_long_suspect_is_not_blamed_for_a_killer_that_came_later(
    where: dict[str, Any], fate: Fate
) -> None:
    fate.patience = 1.5
    one = where | {"shards_per_group": 1}
    async with TestCluster(Mine(fate), **one) as cluster, deadly(cluster) as fate.reaper:
        client = cluster.client
        async with asyncio.TaskGroup() as group:
            long = group.create_task(client.entity(Mine, "long").rest())
            for n in range(SUSPECT):
                await eventually(partial(fate.seen, "long", times=n + 1))
                await fate.reaper.kill()
            await eventually(partial(fate.seen, "long", times=SUSPECT + 1))
            assert await _failure(client.entity(Mine, "killer").explode(1)) == "DeliveryFailed"
            assert await long == "long"


async def test_a_dead_letter_that_is_retried_runs_again_and_its_new_answer_is_for_all(
    strict: TestCluster, fate: Fate
) -> None:
    client, sharding = strict.client, strict.runner.sharding
    await _failure(client.entity(Mine, "killer", key="once").explode(1))
    (letter,) = [each async for each in client.dead_letters()]

    fate.deadly = False
    await client.retry_dead_letters(letter.request_id)
    async with asyncio.timeout(10):
        exit = await (await sharding.await_reply(letter.request_id))
        same = await client.entity(Mine, "killer", key="once").explode(1)

    assert exit.value == b'"1 is safe now"'  # type: ignore[union-attr]
    assert same == "1 is safe now"
    assert [each async for each in client.dead_letters()] == []
    with pytest.raises(NotFound, match="no dead letter"):
        await client.retry_dead_letters(letter.request_id)


async def test_a_retried_dead_letter_may_fail_as_often_as_a_new_message(
    strict: TestCluster, fate: Fate
) -> None:
    client = strict.client
    await _failure(client.entity(Mine, "killer").explode(1))
    (letter,) = [each async for each in client.dead_letters()]

    await client.retry_dead_letters(letter.request_id)

    await eventually(lambda: fate.began["killer"] == 10, timeout=100)
    await eventually(lambda: _letters(strict), timeout=10)


async def test_nothing_overtakes_a_suspect_of_its_entity(strict: TestCluster, fate: Fate) -> None:
    client = strict.client
    mine = client.entity(Mine, "m")
    await client.tell(mine.explode, 1)
    for n in range(20):
        await client.tell(mine.dig, n)
        assert fate.log == []

    async def all_dug() -> bool:
        return len(fate.log) == 20

    await eventually(lambda: _letters(strict), timeout=100)
    await eventually(all_dug)
    assert fate.log == [f"m {n}" for n in range(20)]


async def test_suspects_that_find_a_mailbox_full_do_not_stand_in_the_way_of_others(
    strict: TestCluster, fate: Fate
) -> None:
    client = strict.client
    fate.patience = 0.02
    ids = [f"n-{n}" for n in range(3)]
    async with asyncio.TaskGroup() as group:
        killer = group.create_task(_failure(client.entity(Mine, "killer").explode(1)))
        rests = [group.create_task(client.entity(Narrow, id).rest()) for id in ids * 15]
        for n in range(15):
            for id in ids:
                await client.tell(client.entity(Narrow, id).dig, n)
        assert await killer == "DeliveryFailed"
    assert [task.result() for task in rests] == ids * 15
    await eventually(lambda: len(set(fate.log)) == 45)
    dug = dict.fromkeys(fate.log)  # what was dug in a process that died before it said so is again
    for id in ids:
        assert [each for each in dug if each.startswith(id)] == [f"{id} {n}" for n in range(15)]


async def test_a_stream_that_kills_its_process_ends_behind_its_elements(
    strict: TestCluster, fate: Fate
) -> None:
    stream = strict.client.entity(Mine, "stream").count(3)
    assert [await anext(stream) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RequestFailed, match="lost 5 times"):
        await anext(stream)


async def test_lost_connections_and_orderly_stops_are_no_failures(
    where: dict[str, Any], fate: Fate
) -> None:
    fate.patience = None
    settings = where | {"grace_period": timedelta(0), "handover_limit": timedelta(0)}
    async with TestCluster(Mine(fate), Patient(fate), **settings) as first:
        await first.client.tell(first.client.entity(Mine, "m").rest)
        await first.client.start(Patient, "p", key="p")
        for n in range(12):
            await eventually(partial(fate.seen, "m", "p", times=n + 1))
            await first.crash()
    for n in range(12, 24):
        again = settings | ({} if first.database is None else {"database": first.database})
        async with TestCluster(Mine(fate), Patient(fate), **again) as cluster:
            await eventually(partial(fate.seen, "m", "p", times=n + 1))
    fate.gate.set()
    async with TestCluster(Mine(fate), Patient(fate), **again) as cluster:
        assert await cluster.client.execution(Patient, "p").join(SECONDS) == "p"
        await eventually(lambda: fate.ended["m"] == 1)


async def _failure(call: Any) -> str:
    with pytest.raises(RequestFailed) as failed:
        await call
    return failed.value.error.type


async def _letters(cluster: TestCluster) -> int:
    return len([each async for each in cluster.client.dead_letters()])


async def _status(execution: Any, status: Status) -> None:
    async def reached() -> bool:
        return (await execution.describe()).status is status

    await eventually(reached, timeout=100)
