"""What people do with executions that are there: pause them, repair many, delete old ones."""

from collections.abc import Mapping
from datetime import timedelta
from typing import ClassVar

from engine import Client, RetryPolicy, Status, Workflow, activity


class Bank:
    """Stands for a service that may be away."""

    def __init__(self) -> None:
        self.away = False
        self.charged: list[str] = []


class Invoice(Workflow[str, str]):
    """Charges, waits for two weeks, and closes the account."""

    retention: ClassVar[Mapping[Status, timedelta | None]] = {
        Status.SUCCEEDED: timedelta(days=365),
        Status.FAILED: None,
    }

    def __init__(self, bank: Bank) -> None:
        self.bank = bank

    async def execute(self, request: str) -> str:
        await self.charge(request)
        await self.sleep(timedelta(days=14))
        return f"{request} is closed"

    @activity(retry=RetryPolicy(attempts=3))
    async def charge(self, customer: str) -> None:
        if self.bank.away:
            raise ConnectionError("the bank is away")
        self.bank.charged.append(customer)


def app() -> list[Invoice]:
    """What ``outlast dev examples.operating:app`` serves."""
    return [Invoice(Bank())]


async def hold(client: Client) -> None:
    """Nothing of any invoice begins, also not of those that are started meanwhile."""
    await client.pause(Invoice, "the bank is closed until six")


async def go_on(client: Client) -> None:
    await client.resume(Invoice)


async def hold_one(client: Client, customer: str) -> None:
    await client.execution(Invoice, customer).pause("a complaint")


async def retry_after_outage(client: Client, *, dry_run: bool) -> list[str]:
    """Whom it was, or would be, done to; those that could not be retried say why."""
    results = client.bulk("retry", Invoice, error="ConnectionError", rate=10, dry_run=dry_run)
    return [f"{each.execution.id} {each.problem}".rstrip() async for each in results]


async def delete_failed(client: Client) -> int:
    """Those that failed are kept for ever, unless somebody says so."""
    deleted = 0
    async for result in client.prune(
        Invoice, status=Status.FAILED, older_than=timedelta(days=30), rate=100
    ):
        deleted += result.done
    return deleted
