"""Order fulfilment: stock is reserved, large orders wait for an approval, the card is charged.

Run as a script, ``python examples/fulfil.py`` or ``make demo``, it shows what that is good for: two
runners work on dozens of orders and one of them is killed (see ``fulfil_demo``). To serve orders of
your own, make the tables of ``fulfil.sql`` and run ``outlast run examples.fulfil:runner``.
"""

import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

from pydantic import BaseModel
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from engine import (
    Deferred,
    Entity,
    RetryPolicy,
    Runner,
    Settings,
    Transaction,
    Workflow,
    activity,
    rpc,
    transaction,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from examples.gateway import Gateway

NEEDS_APPROVAL = 10_000


class Order(BaseModel):
    id: str
    sku: str
    count: int
    cents: int


class Receipt(BaseModel):
    order: str
    payment: str


class OutOfStock(Exception):
    pass


class Refused(Exception):
    pass


class Stock(Entity):
    """The stock of one article; an entity handles one message at a time, in the order they came.

    A message is delivered at least once: if this process dies before its answer is stored, the
    next owner is asked again. So a hold carries the order's id, and asking twice changes nothing.
    """

    def __init__(self, shop: AsyncEngine) -> None:
        self.shop = shop

    @rpc
    async def reserve(self, order: str, count: int) -> str:
        hold = """
            with hold as (
                insert into shop.holds (id, sku, count) values (:order, :sku, :count)
                on conflict do nothing returning count)
            update shop.stock set on_hand = on_hand - hold.count from hold where sku = :sku
        """
        try:
            async with self.shop.begin() as connection:
                values = {"order": order, "sku": self.entity_id, "count": count}
                await connection.execute(text(hold), values)
        except IntegrityError as error:
            raise OutOfStock(f"fewer than {count} {self.entity_id} are left") from error
        return order

    @rpc
    async def release(self, hold: str) -> None:
        release = """
            with gone as (delete from shop.holds where id = :hold returning count)
            update shop.stock set on_hand = on_hand + gone.count from gone where sku = :sku
        """
        async with self.shop.begin() as connection:
            await connection.execute(text(release), {"hold": hold, "sku": self.entity_id})


class Fulfil(Workflow[Order, Receipt]):
    approved = Deferred(bool)

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @classmethod
    def key(cls, request: Order) -> str:
        return request.id

    async def execute(self, request: Order) -> Receipt:
        stock = self.entity(Stock, request.sku)
        hold = await stock.reserve(request.id, request.count)
        self.compensate(stock.release, hold)  # runs if what follows fails
        if request.cents >= NEEDS_APPROVAL and not await self.approved.wait(
            timeout=timedelta(days=2)
        ):
            raise Refused(request.id)
        payment = await self.charge(request.id, request.cents)
        await self.record(request.id, payment, request.cents)
        return Receipt(order=request.id, payment=payment)

    @activity(retry=RetryPolicy(attempts=5))
    async def charge(self, order: str, cents: int) -> str:
        """At least once: whoever charges for us must know a repeated key, which is the same on
        every attempt, on every runner."""
        return await self.gateway.charge(
            cents, reference=order, idempotency_key=self.idempotency_key
        )

    @transaction
    async def record(self, tx: Transaction, order: str, payment: str, cents: int) -> None:
        """Exactly once: this row and the step's journal entry commit together or not at all."""
        await tx.execute("insert into shop.payments values ($1, $2, $3)", order, payment, cents)


def runner() -> Runner:
    """What ``outlast run examples.fulfil:runner`` serves."""
    settings = Settings()
    ledger = os.environ.get("GATEWAY_LEDGER") or Path(tempfile.gettempdir(), "gateway.sqlite")
    answers_after = timedelta(seconds=float(os.environ.get("GATEWAY_SECONDS", "0.3")))
    shop = create_async_engine(
        settings.database().replace("postgresql://", "postgresql+asyncpg://", 1)
    )
    return Runner(settings).register(
        Fulfil(Gateway(Path(ledger), answers_after=answers_after)), Stock(shop)
    )


if __name__ == "__main__":
    from examples.fulfil_demo import main
    from examples.stage import run_script

    sys.exit(run_script(main))
