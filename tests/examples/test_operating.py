"""The program that the pages on pausing, repair and retention show."""

from datetime import timedelta

from engine import Status
from engine.testing import TestCluster
from examples import operating
from examples.operating import Bank, Invoice
from tests.eventually import eventually


async def statuses(cluster: TestCluster) -> dict[str, Status]:
    return {each.id: each.status async for each in cluster.client.executions(Invoice)}


async def test_nothing_begins_while_the_workflow_is_paused() -> None:
    bank = Bank()
    resident = timedelta(days=30)
    async with TestCluster(Invoice(bank), suspend_after=resident) as cluster:
        client = cluster.client
        early = await client.start(Invoice, "ada", key="ada")
        await cluster.settle()
        await operating.hold(client)

        async def heard() -> bool:
            return (await early.describe()).status is Status.PAUSED

        await eventually(heard)
        await client.start(Invoice, "bob", key="bob")
        await cluster.advance(timedelta(days=30))
        assert bank.charged == ["ada"]
        assert "the bank is closed until six" in (await early.describe()).why

        await operating.go_on(client)
        await cluster.advance(timedelta(seconds=10))
        assert (await early.join(), bank.charged) == ("ada is closed", ["ada", "bob"])


async def test_one_execution_is_paused_alone() -> None:
    async with TestCluster(*operating.app()) as cluster:
        for name in ("ada", "bob"):
            await cluster.client.start(Invoice, name, key=name)
        await cluster.settle()
        await operating.hold_one(cluster.client, "ada")
        await cluster.advance(timedelta(days=15))
        assert await statuses(cluster) == {"bob": Status.SUCCEEDED, "ada": Status.PAUSED}


async def test_what_failed_in_an_outage_is_retried_after_a_dry_run() -> None:
    bank = Bank()
    bank.away = True
    async with TestCluster(Invoice(bank)) as cluster:
        client = cluster.client
        for name in ("ada", "bob"):
            await client.start(Invoice, name, key=name)
        await cluster.advance(timedelta(hours=1))
        bank.away = False

        assert await operating.retry_after_outage(client, dry_run=True) == ["bob", "ada"]
        assert set((await statuses(cluster)).values()) == {Status.FAILED}
        assert await operating.retry_after_outage(client, dry_run=False) == ["bob", "ada"]
        assert await operating.retry_after_outage(client, dry_run=False) == []
        await cluster.advance(timedelta(days=15))
        assert set((await statuses(cluster)).values()) == {Status.SUCCEEDED}


async def test_those_that_succeeded_go_after_a_year_and_those_that_failed_on_demand() -> None:
    bank = Bank()
    async with TestCluster(Invoice(bank), prune_interval=timedelta(days=1)) as cluster:
        client = cluster.client
        await client.start(Invoice, "ada", key="ada")
        await cluster.advance(timedelta(days=15))
        bank.away = True
        await client.start(Invoice, "bob", key="bob")
        await cluster.advance(timedelta(hours=1))
        assert await operating.delete_failed(client) == 0

        await cluster.advance(timedelta(days=340))
        assert set(await statuses(cluster)) == {"ada", "bob"}
        for _ in range(30):
            await cluster.advance(timedelta(days=1))
        assert set(await statuses(cluster)) == {"bob"}
        assert await operating.delete_failed(client) == 1
        assert await statuses(cluster) == {}
