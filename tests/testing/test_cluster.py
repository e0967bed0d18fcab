"""What a ``TestCluster`` offers: stubs in one cluster and nowhere else, faults, virtual time."""

import asyncio
import os
import threading
from datetime import timedelta

import pytest

from engine import (
    ConfigurationError,
    Entity,
    ExecutionFailed,
    RetryPolicy,
    Transaction,
    Workflow,
    activity,
    rpc,
    transaction,
)
from engine.testing import Fault, TestCluster, stub
from tests.eventually import eventually


class Mails:
    """An activity group."""

    @activity
    async def mail(self, text: str) -> str:
        return f"sent {text}"


class Buy(Mails, Workflow[int, str]):
    async def execute(self, request: int) -> str:
        payment = await self.charge(request, currency="EUR")
        await self.record(payment)
        return await self.mail(payment)

    @activity(retry=RetryPolicy(attempts=2))
    async def charge(self, cents: int, *, currency: str = "USD") -> str:
        raise ConnectionError("the real provider")

    @transaction
    async def record(self, tx: Transaction, payment: str) -> int:
        return await tx.fetchval("select 1")


class Sell(Mails, Workflow[int, str]):
    async def execute(self, request: int) -> str:
        return await self.mail(str(request))


def paid(cents: int, *, currency: str = "USD") -> str:
    return f"{cents} {currency}"


def recorded(payment: str) -> int:
    return 1


async def test_plain_functions_do_the_work_of_activities_and_transactions() -> None:
    stubs = [stub(Buy.charge).by(paid), stub(Buy.record).by(recorded)]
    async with TestCluster(Buy(), stubs=stubs) as cluster:
        assert await cluster.client.execute(Buy, 5) == "sent 5 EUR"


async def test_a_stub_may_be_async() -> None:
    async def slowly(cents: int, *, currency: str = "USD") -> str:
        await asyncio.sleep(0)
        return f"slowly {cents}"

    stubs = [stub(Buy.charge).by(slowly), stub(Buy.record).by(recorded)]
    async with TestCluster(Buy(), stubs=stubs) as cluster:
        assert await cluster.client.execute(Buy, 5) == "sent slowly 5"


async def test_a_stub_that_raises_is_tried_as_often_as_the_step() -> None:
    calls: list[int] = []

    def refuse(cents: int, *, currency: str = "USD") -> str:
        calls.append(cents)
        raise PermissionError("no")

    async with TestCluster(Buy(), stubs=[stub(Buy.charge).by(refuse)]) as cluster:
        execution = await cluster.client.start(Buy, 5)
        await cluster.advance(timedelta(minutes=1))
        with pytest.raises(ExecutionFailed, match="PermissionError: no"):
            await execution.join()

    assert calls == [5, 5]


async def test_the_stub_of_a_mixin_is_that_of_every_workflow_with_it() -> None:
    async with TestCluster(
        Buy(),
        Sell(),
        stubs=[
            stub(Mails.mail).by(str.upper),
            stub(Buy.charge).by(paid),
            stub(Buy.record).by(recorded),
        ],
    ) as cluster:
        assert await cluster.client.execute(Buy, 5) == "5 EUR"
        assert await cluster.client.execute(Sell, 7) == "7"


async def test_clusters_side_by_side_have_their_own_stubs() -> None:
    record = stub(Buy.record).by(recorded)
    async with (
        TestCluster(Buy(), stubs=[stub(Buy.charge).by(lambda cents, currency: "a"), record]) as a,
        TestCluster(Buy(), stubs=[stub(Buy.charge).by(lambda cents, currency: "b"), record]) as b,
    ):
        assert await a.client.execute(Buy, 5) == "sent a"
        assert await b.client.execute(Buy, 5) == "sent b"
    async with TestCluster(Buy()) as real:
        execution = await real.client.start(Buy, 5)
        await real.advance(timedelta(minutes=1))
        with pytest.raises(ExecutionFailed, match="the real provider"):
            await execution.join()


async def test_a_result_of_another_type_fails_as_that_of_the_step_would() -> None:
    wrong = stub(Buy.charge).by(lambda cents, currency: object())
    async with TestCluster(Buy(), stubs=[wrong]) as cluster:
        execution = await cluster.client.start(Buy, 5)
        await cluster.advance(timedelta(minutes=1))
        with pytest.raises(ExecutionFailed, match=r"the result of Buy\.charge"):
            await execution.join()


def test_a_stub_of_a_workflow_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"the step Buy\.charge"):
        TestCluster(Sell(), stubs=[stub(Buy.charge).by(paid)])


def test_a_stub_of_what_is_no_step_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="is not a step"):
        stub(Buy.execute)


async def test_variables_of_the_shell_are_not_in_a_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUTLAST_LANES", "none")
    monkeypatch.setenv("OUTLAST_GROUPS", "elsewhere")

    async with TestCluster(Sell()) as cluster:
        assert await cluster.client.execute(Sell, 7) == "sent 7"
    assert os.environ["OUTLAST_LANES"] == "none"


class Threaded(Workflow[str, str]):
    def __init__(self, gate: threading.Event) -> None:
        self.gate = gate

    async def execute(self, request: str) -> str:
        async with asyncio.timeout(3600):
            return await self.read(request)

    @activity
    def read(self, name: str) -> str:
        self.gate.wait(0.05)
        return name


async def test_time_stands_while_a_step_is_at_work_in_a_thread() -> None:
    async with TestCluster(Threaded(threading.Event())) as cluster:
        execution = await cluster.client.start(Threaded, "a")
        await cluster.advance(timedelta(days=1))
        assert await execution.join() == "a"


class Month(Workflow[None, int]):
    async def execute(self, request: None) -> int:
        for day in range(30):
            await self.sleep(timedelta(days=1))
            await self.note(day)
        return 30

    @activity
    async def note(self, day: int) -> None:
        pass


async def test_thirty_days_pass_at_once_and_each_timer_fires_at_its_time() -> None:
    async with TestCluster(Month()) as cluster:
        began = cluster.clock.now()
        execution = await cluster.client.start(Month, None)
        await cluster.advance(timedelta(days=30))
        assert await execution.join() == 30
        fired = [each.at - began for each in await execution.history() if each.due_at]

    assert fired == [timedelta(days=day) for day in range(1, 31)]


@pytest.mark.parametrize("fault", [Fault.BEFORE_COMMIT, Fault.AFTER_COMMIT])
async def test_a_fault_can_be_planned_for_a_later_write(fault: Fault) -> None:
    async with TestCluster(Month()) as cluster:
        cluster.fail_next_flush(fault, after=3)
        execution = await cluster.client.start(Month, None)
        await cluster.advance(timedelta(days=30))
        await asyncio.sleep(0.1)
        await cluster.advance(timedelta(days=30))
        assert await execution.join() == 30


class Counter(Entity):
    @rpc
    async def add(self, number: int) -> int:
        return number + 1


async def test_an_answer_that_nobody_was_told_of_is_read_once_its_shard_is_owned_again() -> None:
    async with (
        asyncio.timeout(10),
        TestCluster(Counter(), poll_interval=timedelta(hours=1)) as cluster,
    ):
        cluster.fail_next_flush(Fault.AFTER_COMMIT)
        assert await cluster.client.entity(Counter, "c").add(1) == 2


async def test_what_was_started_before_an_outage_goes_on_after_it() -> None:
    async with TestCluster(Month()) as cluster:
        execution = await cluster.client.start(Month, None)
        await cluster.advance(timedelta(days=3))
        cluster.stop_database()
        cluster.start_database()
        cluster.lose_notifications()
        join = asyncio.ensure_future(execution.join())

        async def joined() -> bool:
            await cluster.advance(timedelta(days=1))
            return join.done()

        await eventually(joined)
        assert await join == 30


async def test_faults_are_for_clusters_in_memory(dsn: str) -> None:
    cluster = TestCluster(Sell(), dsn=dsn)

    with pytest.raises(ConfigurationError, match=r"fail_next_flush\(\) is for a cluster in memory"):
        cluster.fail_next_flush()
