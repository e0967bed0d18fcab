"""Whatever user code raises ends its own step, message or execution, and nothing else."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
from pydantic import BaseModel, field_validator

from engine import (
    Entity,
    Failed,
    RequestFailed,
    RetryPolicy,
    StepFailed,
    Transaction,
    Workflow,
    activity,
    by_name,
    rpc,
    transaction,
)
from engine.testing import TestCluster

LIMIT = timedelta(seconds=5)
ONCE = RetryPolicy(attempts=1)


class Outrage(BaseException):
    """What few catch."""


class Echo(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return request


class Raises(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        steps = {"task": self.in_a_task, "thread": self.in_a_thread, "sql": self.in_sql}
        how, _, what = request.partition(" ")
        try:
            await steps[how](what)
        except StepFailed as error:
            return error.error.type
        return "nothing"

    @activity(retry=ONCE)
    async def in_a_task(self, what: str) -> None:
        _raise(what)

    @activity(retry=ONCE)
    def in_a_thread(self, what: str) -> None:
        _raise(what)

    @transaction(retry=ONCE)
    async def in_sql(self, tx: Transaction, what: str) -> None:
        _raise(what)


def _raise(what: str) -> None:
    if what == "StopIteration":
        empty: Iterator[int] = iter(())
        next(empty)
    raise {"SystemExit": SystemExit, "Outrage": Outrage}[what]("enough")


@pytest.mark.parametrize("where", ["task", "thread", "sql"])
@pytest.mark.parametrize("what", ["SystemExit", "Outrage"])
async def test_a_step_that_raises_what_is_no_exception_fails_alone(where: str, what: str) -> None:
    async with TestCluster(Raises(), Echo()) as cluster:
        assert await cluster.client.execute(Raises, f"{where} {what}", timeout=LIMIT) == what
        assert await cluster.client.execute(Echo, "still here", timeout=LIMIT) == "still here"


async def test_a_step_in_a_thread_that_raises_stop_iteration_ends_like_a_coroutine() -> None:
    async with TestCluster(Raises()) as cluster:
        ended = await cluster.client.execute(Raises, "thread StopIteration", timeout=LIMIT)
        assert ended == "RuntimeError"


class Exits(Entity):
    @rpc
    async def leave(self, how: str) -> None:
        _raise(how)

    @rpc
    async def stay(self) -> str:
        return "still here"


@pytest.mark.parametrize("what", ["SystemExit", "Outrage"])
async def test_a_handler_that_raises_what_is_no_exception_answers_with_it(what: str) -> None:
    async with TestCluster(Exits()) as cluster:
        entity = cluster.client.entity(Exits, "e")
        with pytest.raises(RequestFailed, match=what):
            await entity.leave(what)
        assert await entity.stay() == "still here"


class Picky(BaseModel):
    number: int

    @field_validator("number")
    @classmethod
    def known(cls, number: int) -> int:
        return {1: 1}[number]


class Takes(Workflow[Picky, int]):
    async def execute(self, request: Picky) -> int:
        return request.number


async def test_a_stored_request_whose_validator_breaks_fails_alone() -> None:
    async with TestCluster(Takes(), Echo()) as cluster:
        poison = by_name.Start(workflow="Takes", group="default", id="p", payload=b'{"number": 2}')
        await by_name.start(cluster.client._node, poison)
        await cluster.settle()
        outcome = await cluster.client.execution(Takes, "p").poll()
        assert isinstance(outcome, Failed)
        assert "KeyError" in outcome.error.message
        assert await cluster.client.execute(Echo, "still here", timeout=LIMIT) == "still here"
