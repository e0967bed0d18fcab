"""Run one attempt of a step on the host: an activity in a task or thread, a transaction on its own
connection.

From ``workflow.resident``, which starts attempts whose command may leave; the outcome goes back
there as an event.
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from engine.core.errors import ErrorDetails, InvalidPayload, OwnershipLost, StorageUnavailable
from engine.core.journal import JournalRow, Outcome
from engine.core.payload import PayloadLimit
from engine.storage.protocol import Fence, Storage
from engine.storage.transaction import Transaction
from engine.workflow.activity import StepDefinition
from engine.workflow.activity_group import CompleteLater
from engine.workflow.body import copy_of
from engine.workflow.definition import Workflow, definition_of
from engine.workflow.pulse import Pulse
from engine.workflow.step import Step
from engine.workflow.step_context import StepContext, current_step
from engine.workflow.step_threads import StepThreads

log: logging.Logger = logging.getLogger(__name__)

PASSED_ON = (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit)
"""What is not a step's own end, but somebody's wish that it ends."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An attempt that succeeded: its stored form and what the body gets."""

    payload: bytes
    value: object


@dataclass(frozen=True, slots=True)
class Errored:
    """An attempt that failed. ``final``: another would fail as well, whatever the policy."""

    error: BaseException
    details: ErrorDetails
    outcome: Outcome
    final: bool = False


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The database could not be asked: the same attempt again, later; it does not count."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Postponed:
    """An attempt whose result will come from outside."""


class StepDropped(BaseException):
    """The body cancelled a transaction before its journal row had a position: roll back."""


class _Unstorable(Exception):
    """A step has done its work, and its result, the cause of this, cannot be stored."""


async def run_activity(
    prototype: Workflow[Any, Any],
    step: Step,
    definition: StepDefinition,
    context: StepContext,
    pulse: Pulse,
    *,
    threads: StepThreads,
    limit: PayloadLimit,
) -> Ended | Errored | Postponed:
    """One attempt, in ``threads`` unless it is async. Cancellation is passed on; everything else
    comes back as a value.

    A thread cannot be stopped: one whose attempt is over runs on, and nobody hears of its end.
    """
    current_step.set(context)
    instance = copy_of(prototype)
    timeout = definition.timeout
    try:
        if definition.sync:
            work = _run_in(threads, definition, instance, step, pulse)
        else:
            pulse.begin()
            work = definition.function(instance, *step.args, **step.kwargs)
        if timeout is None and definition.heartbeat_timeout is None:
            result = await work
        else:
            seconds = None if timeout is None else timeout.total_seconds()
            async with asyncio.timeout(seconds) as scope:
                pulse.watch(scope)
                result = await work
        return _ended(definition, result, limit)
    except CompleteLater:
        return Postponed()
    except PASSED_ON:
        raise
    except BaseException as error:  # noqa: BLE001 -- whatever a step raises is its end
        return failed(error, definition, prototype, silent=pulse.silent)
    finally:
        pulse.end()


async def run_transaction(
    prototype: Workflow[Any, Any],
    step: Step,
    definition: StepDefinition,
    context: StepContext,
    *,
    storage: Storage,
    fence: Fence,
    position: Callable[[Step, bytes], "asyncio.Future[JournalRow]"],
    limit: PayloadLimit,
) -> Ended | Errored | Unavailable:
    """One attempt in a transaction of its own, its journal row included."""
    current_step.set(context)
    instance = copy_of(prototype)
    ended: Ended | None = None
    own: list[Exception] = []

    async def work(transaction: Transaction) -> JournalRow:
        nonlocal ended
        try:
            if definition.timeout is None:
                result = await definition.function(instance, transaction, *step.args, **step.kwargs)
            else:
                async with asyncio.timeout(definition.timeout.total_seconds()):
                    result = await definition.function(
                        instance, transaction, *step.args, **step.kwargs
                    )
            ended = _ended(definition, result, limit)
        except Exception as error:
            own.append(error)
            raise
        return await position(step, ended.payload)

    try:
        await storage.transact(fence, work)
    except (*PASSED_ON, StepDropped, OwnershipLost):
        raise
    except (StorageUnavailable, OSError) as error:
        return failed(error, definition, prototype) if error in own else Unavailable(error)
    except BaseException as error:  # noqa: BLE001 -- as above
        return failed(error, definition, prototype)
    assert ended is not None
    return ended


def _ended(definition: StepDefinition, result: object, limit: PayloadLimit) -> Ended:
    codec = definition.signature.result
    try:
        payload, value = codec.settle(result)
        return Ended(limit.check(payload, codec.what), value)
    except InvalidPayload as error:
        raise _Unstorable from error


def failed(
    error: BaseException,
    definition: StepDefinition,
    prototype: Workflow[Any, Any],
    *,
    silent: bool = False,
) -> Errored:
    if final := isinstance(error, _Unstorable):
        assert error.__cause__ is not None
        error = error.__cause__
    limit = definition.heartbeat_timeout if silent else definition.timeout
    timed_out = isinstance(error, TimeoutError) and limit is not None
    outcome = Outcome.TIMED_OUT if timed_out else Outcome.FAILED
    details = definition_of(type(prototype)).details_of(error)
    if timed_out and not details.message:
        what = "heartbeat" if silent else "result"
        details = replace(details, message=out_of_time(what, limit))
    return Errored(error, details, outcome, final)


def out_of_time(what: str, limit: timedelta | None) -> str:
    """What did not come in time, in words."""
    return f"no {what} within {limit.total_seconds() if limit else 0:g} s"


async def _run_in(
    threads: StepThreads,
    definition: StepDefinition,
    instance: Workflow[Any, Any],
    step: Step,
    pulse: Pulse,
) -> Any:
    context = copy_context()

    def run() -> Any:
        pulse.begin()
        try:
            return context.run(definition.function, instance, *step.args, **step.kwargs)
        except StopIteration as error:  # a future cannot carry it: nobody would hear of the end
            raise RuntimeError("the step raised StopIteration") from error

    return await threads.run(run)
