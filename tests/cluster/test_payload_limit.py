"""Values that are larger than ``payload_limit``: refused where they are made, with size and fix."""

from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from engine import (
    Entity,
    ExecutionFailed,
    InvalidPayload,
    RequestFailed,
    RetryPolicy,
    State,
    Transaction,
    Workflow,
    activity,
    rpc,
    transaction,
)
from engine.testing import TestCluster

LIMIT = 2048
REFUSED = (
    r"is \d{4} bytes, more than the 2048 that payload_limit \(variable OUTLAST_PAYLOAD_LIMIT\)"
)


class Text(BaseModel):
    text: str = ""


class Shelf(Entity):
    state = State(Text)

    @rpc
    async def put(self, text: str) -> int:
        self.state.text += text
        return len(self.state.text)

    @rpc
    async def get(self, size: int) -> str:
        return "x" * size

    @rpc
    async def pages(self, *sizes: int) -> AsyncIterator[str]:
        for size in sizes:
            yield "x" * size


class Grows(Workflow[str, str]):
    """Makes something large by the means that its request names."""

    @classmethod
    def key(cls, request: str) -> str:
        return request[:10]

    async def execute(self, request: str) -> str:
        match request:
            case "activity":
                return await self.step(LIMIT)
            case "transaction":
                return await self.stores(LIMIT)
            case "call":
                return str(await self.entity(Shelf, "a").put("x" * LIMIT))
            case "answer":
                return await self.entity(Shelf, "a").get(LIMIT)
            case _:
                return "x" * LIMIT

    @activity(retry=RetryPolicy(attempts=1))
    async def step(self, size: int) -> str:
        return "x" * size

    @transaction(retry=RetryPolicy(attempts=1))
    async def stores(self, tx: Transaction, size: int) -> str:
        return "x" * size


def shelves(where: dict[str, Any]) -> TestCluster:
    return TestCluster(Shelf(), Grows(), payload_limit=LIMIT, **where)


async def test_arguments_are_refused_before_anything_is_stored(where: dict[str, Any]) -> None:
    async with shelves(where) as cluster:
        shelf = cluster.client.entity(Shelf, "a")
        with pytest.raises(InvalidPayload, match=f"the payload of Shelf put {REFUSED}"):
            await shelf.put("x" * LIMIT)
        with pytest.raises(InvalidPayload, match=f"the request of Grows {REFUSED}"):
            await cluster.client.start(Grows, "x" * LIMIT)
        assert await shelf.put("x") == 1


async def test_a_result_is_its_handlers_failure(where: dict[str, Any]) -> None:
    async with shelves(where) as cluster:
        shelf = cluster.client.entity(Shelf, "a")
        with pytest.raises(RequestFailed, match=f"the result of .*get {REFUSED}"):
            await shelf.get(LIMIT)
        assert await shelf.get(LIMIT - 2) == "x" * (LIMIT - 2)


async def test_a_state_is_its_handlers_failure_and_stays_as_it_was(where: dict[str, Any]) -> None:
    async with shelves(where) as cluster:
        shelf = cluster.client.entity(Shelf, "a")
        assert await shelf.put("x" * 1500) == 1500
        with pytest.raises(RequestFailed, match=r"the state of Shelf is 30\d\d bytes"):
            await shelf.put("x" * 1500)
        assert await shelf.put("x") == 1501


async def test_an_element_ends_its_stream(where: dict[str, Any]) -> None:
    async with shelves(where) as cluster:
        pages = cluster.client.entity(Shelf, "a").pages(1, LIMIT, 1)
        assert await anext(pages) == "x"
        with pytest.raises(RequestFailed, match=REFUSED):
            await anext(pages)


@pytest.mark.parametrize("means", ["activity", "call", "answer", "result"])
async def test_what_a_workflow_makes_is_its_failure(where: dict[str, Any], means: str) -> None:
    async with shelves(where) as cluster:
        with pytest.raises(ExecutionFailed, match=REFUSED):
            await cluster.client.execute(Grows, means)


async def test_the_result_of_a_transaction_rolls_it_back(dsn: str) -> None:
    async with shelves({"dsn": dsn}) as cluster:
        with pytest.raises(ExecutionFailed, match=REFUSED):
            await cluster.client.execute(Grows, "transaction")


async def test_more_than_half_of_the_limit_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    async with shelves({}) as cluster:
        shelf = cluster.client.entity(Shelf, "a")
        assert await shelf.get(1000)
        assert "half of payload_limit" not in caplog.text
        assert await shelf.get(1100)
        assert "half of payload_limit" in caplog.text
