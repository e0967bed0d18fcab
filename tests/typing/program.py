"""The program that the public contract shows, word for word but for the gateway's protocol."""

from datetime import timedelta
from typing import Protocol

from pydantic import BaseModel

from engine import (
    Client,
    Deferred,
    Entity,
    RetryPolicy,
    Runner,
    Transaction,
    Workflow,
    activity,
    rpc,
    transaction,
)


class Gateway(Protocol):
    async def charge(self, cents: int, *, idempotency_key: str) -> str: ...


class Order(BaseModel):
    id: str
    sku: str
    cents: int


class Receipt(BaseModel):
    order: str
    payment: str


class Stock(Entity):
    @rpc
    async def reserve(self, count: int) -> str: ...
    @rpc
    async def release(self, hold: str) -> None: ...


class Fulfil(Workflow[Order, Receipt]):
    approved = Deferred(bool)

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway

    @classmethod
    def key(cls, request: Order) -> str:
        return request.id

    async def execute(self, request: Order) -> Receipt:
        stock = self.entity(Stock, request.sku)
        hold = await stock.reserve(1)
        self.compensate(stock.release, hold)
        if not await self.approved.wait(timeout=timedelta(days=2)):
            raise PermissionError(request.id)
        payment = await self.charge(request.cents)
        await self.record(request.id, payment)
        return Receipt(order=request.id, payment=payment)

    @activity(retry=RetryPolicy(attempts=5))
    async def charge(self, cents: int) -> str:
        return await self.gateway.charge(cents, idempotency_key=self.idempotency_key)

    @transaction
    async def record(self, tx: Transaction, order: str, payment: str) -> None:
        await tx.execute("insert into payments values ($1, $2)", order, payment)


async def serve(gateway: Gateway) -> None:
    await Runner().register(Fulfil(gateway), Stock()).run()


async def checkout(client: Client, order: Order) -> Receipt:
    execution = await client.start(Fulfil, order)
    await execution.resolve(Fulfil.approved, True)
    return await execution.join(timeout=timedelta(minutes=5))
