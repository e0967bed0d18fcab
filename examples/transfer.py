"""Money between accounts in SQL: every transfer is applied once, whoever dies meanwhile.

``python examples/transfer.py`` starts hundreds at once on two runners, kills one of them and adds
up. The steps are transactions: one written with SQL, one with SQLAlchemy's ORM.
"""

import asyncio
import random
import sys
import tempfile
from pathlib import Path

import asyncpg
from pydantic import BaseModel, Field
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from engine import (
    Client,
    ExecutionFailed,
    RetryPolicy,
    Runner,
    Settings,
    StepFailed,
    Transaction,
    Workflow,
    transaction,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.stage import database, run_script, runners, shared_out, until

TABLES = """
    create schema if not exists bank;
    create table bank.accounts (
        name text primary key, cents bigint not null, closed bool not null default false);
    create table bank.entries (
        id bigint generated always as identity primary key,
        transfer text not null, account text not null, cents bigint not null);
"""


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    __table_args__ = {"schema": "bank"}  # noqa: RUF012 SQLAlchemy's form
    name: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]
    closed: Mapped[bool]


class Entry(Base):
    __tablename__ = "entries"
    __table_args__ = {"schema": "bank"}  # noqa: RUF012 SQLAlchemy's form
    id: Mapped[int] = mapped_column(primary_key=True)
    transfer: Mapped[str]
    account: Mapped[str]
    cents: Mapped[int]


class Order(BaseModel):
    id: str
    payer: str
    payee: str
    cents: int = Field(gt=0)


class Refused(Exception):
    """For good: trying again would not help."""


FINAL = RetryPolicy(give_up_on=(Refused,))


class Transfer(Workflow[Order, str]):
    @classmethod
    def key(cls, request: Order) -> str:
        return request.id

    async def execute(self, request: Order) -> str:
        await self.withdraw(request.id, request.payer, request.cents)
        try:
            await self.deposit(request.id, request.payee, request.cents)
        except StepFailed:  # the payee's account is closed
            await self.deposit(request.id, request.payer, request.cents)
            return "returned"
        return "done"

    @transaction(retry=FINAL)
    async def withdraw(self, tx: Transaction, transfer: str, account: str, cents: int) -> None:
        """Plain SQL; what a step raises rolls back all of it."""
        take = "update bank.accounts set cents = cents - $2 where name = $1 and cents >= $2"
        if await tx.execute(take, account, cents) != "UPDATE 1":
            raise Refused(f"{account} has less than {cents}")
        note = "insert into bank.entries (transfer, account, cents) values ($1, $2, $3)"
        await tx.execute(note, transfer, account, -cents)

    @transaction(retry=FINAL)
    async def deposit(self, tx: Transaction, transfer: str, account: str, cents: int) -> None:
        """The ORM; the session is in the same transaction as the step's journal entry."""
        async with tx.session() as session:
            found = await session.get_one(Account, account, with_for_update=True)
            if found.closed:
                raise Refused(f"{account} is closed")
            found.cents += cents
            session.add(Entry(transfer=transfer, account=account, cents=cents))


def runner() -> Runner:
    return Runner().register(Transfer())


def made_up(count: int, accounts: int) -> list[Order]:
    draw = random.Random(7)
    names = [f"account-{n}" for n in range(accounts)]
    orders: list[Order] = []
    for n in range(count):
        payer, payee = draw.sample(names, 2)
        orders.append(Order(id=f"t-{n}", payer=payer, payee=payee, cents=draw.randint(1, 4000)))
    return orders


async def main(transfers: int = 300, accounts: int = 12) -> int:
    orders = made_up(transfers, accounts)
    with tempfile.TemporaryDirectory(prefix="outlast-transfer-") as folder:
        async with asyncio.timeout(90), database("transfer") as dsn:
            bank = await asyncpg.connect(dsn)
            await bank.execute(TABLES)
            opened = [(f"account-{n}", 20_000, n == 0) for n in range(accounts)]
            await bank.executemany("insert into bank.accounts values ($1, $2, $3)", opened)
            app = "examples.transfer:runner"
            with runners(2, app, dsn=dsn, folder=Path(folder)) as processes:
                await shared_out(dsn, processes)
                async with Client(Settings(dsn=dsn, schema="engine")) as client:
                    ends: dict[str, str] = {}

                    async def run(order: Order) -> None:
                        try:
                            ends[order.id] = await client.execute(Transfer, order)
                        except ExecutionFailed as error:
                            ends[order.id] = str(error.error)

                    async with asyncio.TaskGroup() as group:
                        for order in orders:
                            group.create_task(run(order))
                        quarter = transfers // 4
                        await until(lambda: len(ends) >= quarter, seconds=30, what="some transfers")
                        processes[0].kill()
                        print(f"Killed a runner when {len(ends)} transfers had ended")
            held = await check(bank, orders, ends, before=20_000 * accounts)
            await bank.close()
    return 0 if held else 1


async def check(
    bank: asyncpg.Connection, orders: list[Order], ends: dict[str, str], *, before: int
) -> bool:
    """Add up what is in the tables."""
    after = await bank.fetchval("select sum(cents)::bigint from bank.accounts")
    drift = await bank.fetchval("""
        select count(*) from bank.accounts a where cents <> 20000
            + (select coalesce(sum(cents), 0) from bank.entries e where e.account = a.name)
    """)
    entries: dict[str, list[tuple[str, int]]] = {order.id: [] for order in orders}
    for row in await bank.fetch("select transfer, account, cents from bank.entries order by id"):
        entries[row["transfer"]].append((row["account"], row["cents"]))
    wrong = [o.id for o in orders if entries[o.id] != expected(o, ends[o.id])]
    done, returned = (sum(end == each for end in ends.values()) for each in ("done", "returned"))
    refused = len(ends) - done - returned
    print(f"{done} transfers done, {returned} returned, {refused} refused for lack of money")
    print(f"{before} cents before, {after} after; {len(wrong)} transfers not applied exactly once")
    return before == after and not drift and not wrong and len(ends) == len(orders)


def expected(order: Order, end: str) -> list[tuple[str, int]]:
    """The entries that a transfer with this end leaves."""
    taken = (order.payer, -order.cents)
    match end:
        case "done":
            return [taken, (order.payee, order.cents)]
        case "returned":
            return [taken, (order.payer, order.cents)]
        case _:
            return []


if __name__ == "__main__":
    sys.exit(run_script(main))
