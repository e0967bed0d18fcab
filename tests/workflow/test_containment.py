"""Whatever user code raises ends its own step, message or execution, and nothing else."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from pydantic import BaseModel, field_validator

from engine import (
    Deferred,
    Entity,
    ExecutionFailed,
    Failed,
    JournalKind,
    RequestFailed,
    RetryPolicy,
    StepFailed,
    Transaction,
    UpdateRejected,
    Workflow,
    activity,
    by_name,
    query,
    rpc,
    signal,
    transaction,
    update,
)
from engine.testing import TestCluster
from tests.workflow.conftest import World

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
    raise {
        "SystemExit": SystemExit,
        "Outrage": Outrage,
        "CancelledError": asyncio.CancelledError,
    }[what]("enough")


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


def _raises(what: str) -> bool:
    _raise(what)
    return True


class Looked(Workflow[str, str]):
    """Is looked at by code that raises what few catch."""

    go = Deferred(bool)

    async def execute(self, request: str) -> str:
        self.changed = False
        try:
            await self.wait_until(lambda: self.changed and _raises(request))
        except BaseException as error:  # noqa: BLE001 -- it is what the test is about
            await self.go.wait()
            return type(error).__name__
        return "nothing"

    @signal
    def change(self) -> None:
        self.changed = True

    @query
    def look(self, what: str) -> None:
        _raise(what)

    @update
    async def touch(self, what: str) -> None:
        _raise(what)

    @update
    async def refuse(self, what: str) -> None: ...

    @refuse.validator
    def check(self, what: str) -> None:
        _raise(what)


@pytest.mark.parametrize("what", ["CancelledError", "SystemExit", "Outrage", "StopIteration"])
async def test_what_looks_at_a_body_and_raises_what_is_no_exception_harms_nothing_else(
    what: str, world: World
) -> None:
    async with world.cluster(Looked()) as cluster, asyncio.timeout(40):
        looked = await cluster.client.start(Looked, what)
        for asked in (
            looked.query(Looked.look, what),
            looked.update(Looked.touch, what),
            looked.update(Looked.refuse, what),
        ):
            with pytest.raises((RequestFailed, UpdateRejected)):
                await asyncio.wait_for(asked, 10)
        await looked.signal(Looked.change)
        await looked.resolve(Looked.go, True)
        ended = await world.result(cluster, looked)
    assert ended == ("RuntimeError" if what == "StopIteration" else what)


class Undone(Workflow[str, None]):
    """Undoes what it has done, slowly."""

    undone: ClassVar[list[str]] = []
    go: ClassVar[asyncio.Event]

    async def execute(self, request: str) -> None:
        self.compensate(self.undo, "first")
        self.compensate(self.undo, "second")
        raise LookupError(request)

    @activity
    async def undo(self, what: str) -> None:
        await self.go.wait()
        self.undone.append(what)

    @signal
    def wrong(self) -> None:
        raise KeyError("too late")


async def test_a_signal_that_fails_does_not_cut_compensations_short(world: World) -> None:
    Undone.undone.clear()
    Undone.go = asyncio.Event()
    async with world.cluster(Undone()) as cluster, asyncio.timeout(40):
        undone = await cluster.client.start(Undone, "no stock")
        await undone.signal(Undone.wrong)
        await world.until(cluster, lambda: _told(undone))
        Undone.go.set()
        with pytest.raises(ExecutionFailed, match="no stock"):
            await world.result(cluster, undone)
    assert Undone.undone == ["second", "first"]


async def _told(execution: Any) -> bool:
    return any(event.kind is JournalKind.SIGNAL for event in await execution.history())
