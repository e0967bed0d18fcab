"""The body of one execution: a workflow's code on its deterministic loop, without any I/O.

``workflow.resident`` feeds it events (a step's end, a timer, a resolution) and takes the commands
it leaves: steps to run and calls to send. The same events in the same order give the same commands;
that is what replay rests on.
"""

import asyncio
import contextvars
import inspect
import random
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import CodeType
from typing import Any
from uuid import UUID

from engine.cluster.handle import EntityCall
from engine.cluster.rpc import volatile_step
from engine.core.codec import digest
from engine.core.errors import ConfigurationError, ErrorDetails, StepFailed, StepTimedOut
from engine.core.journal import Outcome
from engine.core.retry import RetryPolicy
from engine.workflow.activity import BODY, StepDefinition
from engine.workflow.definition import Workflow
from engine.workflow.loop import DeterministicLoop

StepKey = tuple[str, int]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Step:
    """One step the body has asked for and not yet seen the end of."""

    __slots__ = (
        "args",
        "attempt",
        "call",
        "definition",
        "digest",
        "future",
        "kwargs",
        "mark",
        "name",
        "ordinal",
        "payload",
        "request_id",
        "retry_at",
        "started_at",
        "task",
        "where",
    )

    def __init__(
        self,
        *,
        name: str,
        ordinal: int,
        payload: bytes,
        digest: int,
        future: asyncio.Future[Any],
        where: tuple[CodeType, int] | None,
        definition: StepDefinition | None = None,
        call: EntityCall | None = None,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> None:
        self.name: str = name
        self.ordinal: int = ordinal
        self.payload: bytes = payload
        self.digest: int = digest
        self.future: asyncio.Future[Any] = future
        self.where: tuple[CodeType, int] | None = where
        self.definition: StepDefinition | None = definition
        self.call: EntityCall | None = call
        self.args: tuple[object, ...] = args
        self.kwargs: dict[str, object] = kwargs or {}
        self.attempt: int = 1
        self.mark: int = 0
        self.retry_at: datetime | None = None
        self.started_at: datetime | None = None
        self.request_id: int | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def key(self) -> StepKey:
        return self.name, self.ordinal

    @property
    def retry(self) -> RetryPolicy:
        return self.definition.retry if self.definition is not None else RetryPolicy()

    @property
    def line(self) -> str:
        """The line of user code that asked for the step."""
        if self.where is None:
            return "unknown line"
        code, line = self.where
        return f"{code.co_filename}:{line} in {code.co_qualname}"

    def __str__(self) -> str:
        return f"step {self.name}#{self.ordinal + 1}"


_Call = tuple[Coroutine[Any, Any, Any], str, tuple[CodeType, int]]
"""A step as it was called: what is to be awaited, its name, and where."""


class CompensationFailed(Exception):
    """An undo ended with an error after all its attempts: the execution is blocked, not failed."""


@dataclass(slots=True)
class _DeferredState:
    future: asyncio.Future[bytes]
    waiting: int = 0


class Body:
    """Runs ``workflow.execute(request)``; see the module's docstring for what goes in and out.

    ``observed`` is called whenever the body reads its clock.
    """

    def __init__(
        self,
        *,
        prototype: Workflow[Any, Any],
        request: Any,
        execution_id: str,
        seed: str,
        observed: Callable[[], None],
    ) -> None:
        self.execution_id = execution_id
        self.suspending: bool = False
        self.interrupted: str | None = None
        self.random: random.Random = random.Random(seed)
        self.loop: DeterministicLoop = DeterministicLoop(
            observed=observed, salt=digest(seed.encode())
        )
        self.steps: dict[StepKey, Step] = {}
        self.commands: deque[Step] = deque()
        self.cancelled: dict[StepKey, Step] = {}
        self._ordinals: dict[str, int] = {}
        self._called = 0
        self._not_awaited: dict[int, _Call] = {}
        self._deferreds: dict[str, _DeferredState] = {}
        self._undo: list[Callable[[], Awaitable[object]]] = []
        self._compensating = False
        self.instance: Workflow[Any, Any] = copy_of(prototype)
        self.instance.__dict__[BODY] = self
        with self.loop.running():
            self.task: asyncio.Task[Any] = self.loop.create_task(
                self._main(request), context=contextvars.Context()
            )

    # --- fed by the resident execution ------------------------------------------------------------

    @property
    def done(self) -> bool:
        return self.task.done() or self.loop.fatal is not None

    def set_time(self, at: datetime) -> None:
        self.loop.now = (at - _EPOCH).total_seconds()

    def end_step(self, step: Step, outcome: Outcome, value: object) -> None:
        """Hand a step's result (or, if it failed, its ``ErrorDetails``) to whoever awaits it."""
        del self.steps[step.key]
        if step.future.done():
            return
        if outcome is Outcome.OK:
            step.future.set_result(value)
        elif isinstance(value, ErrorDetails):
            kind = StepTimedOut if outcome is Outcome.TIMED_OUT else StepFailed
            attempts = f" after {step.attempt} attempts" if step.attempt > 1 else ""
            step.future.set_exception(kind(f"{step} failed{attempts}: {value}", value))
        else:
            step.future.set_exception(value)  # type: ignore[arg-type]

    def resolve(self, name: str, payload: bytes) -> None:
        future = self._deferred(name).future
        if not future.done():
            future.set_result(payload)

    def reject(self, name: str, error: ErrorDetails) -> None:
        future = self._deferred(name).future
        if not future.done():
            future.set_exception(
                StepFailed(f"deferred {name} was rejected: {error.message}", error)
            )
            future.exception()  # whoever waits gets it; nobody has to

    def interrupt(self, reason: str) -> None:
        """Cancel the body's main task; its cleanup runs, with steps if need be.

        Compensations are not cut short: they are what an interrupt asks for.
        """
        if not self._compensating:
            self.interrupted = reason
            self.task.cancel(reason)

    def close(self) -> None:
        """Take the body out of memory; see ``DeterministicLoop.close_body``."""
        self.suspending = True
        self.loop.close_body()

    def free(self) -> None:
        """Let go of everything, once closed."""
        self.instance.__dict__.pop(BODY, None)
        self.steps.clear()
        self.commands.clear()
        self.cancelled.clear()
        self._deferreds.clear()
        self._undo.clear()
        for coroutine, _, _ in self._not_awaited.values():
            coroutine.close()
        self._not_awaited.clear()
        self.loop.free()

    @property
    def waiting_for(self) -> list[str]:
        """The names of the deferreds that are awaited now."""
        return [
            name
            for name, state in self._deferreds.items()
            if state.waiting and not state.future.done()
        ]

    # --- asked by the user's code ----------------------------------------------------------------

    def run_step(
        self, definition: StepDefinition, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Coroutine[Any, Any, Any]:
        name = definition.name
        if definition.key is not None:
            name = f"{name}[{definition.key(*args, **kwargs)}]"
        frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        where = (frame.f_code, frame.f_lineno)
        self._called += 1
        made = self._step(self._called, name, where, definition, args, kwargs)
        self._not_awaited[self._called] = made, name, where
        return made

    async def _step(
        self,
        number: int,
        name: str,
        where: tuple[CodeType, int],
        definition: StepDefinition,
        args: tuple[object, ...],
        kwargs: dict[str, object],
    ) -> Any:
        self._not_awaited.pop(number, None)
        payload = definition.signature.encode(args, kwargs)
        step = Step(
            name=name,
            ordinal=self._next(name),
            payload=payload,
            digest=digest(payload),
            future=self.loop.create_future(),
            where=where,
            definition=definition,
            args=args,
            kwargs=kwargs,
        )
        return await self._ask(step)

    def call_entity(self, call: EntityCall) -> Coroutine[Any, Any, Any]:
        if not call.rpc.persisted:
            raise volatile_step(call.name)
        frame = sys._getframe(3)  # pyright: ignore[reportPrivateUsage]
        where = (frame.f_code, frame.f_lineno)
        self._called += 1
        made = self._call(self._called, call, where)
        self._not_awaited[self._called] = made, call.name, where
        return made

    async def _call(self, number: int, call: EntityCall, where: tuple[CodeType, int]) -> Any:
        self._not_awaited.pop(number, None)
        payload = call.rpc.signature.validated(call.args, call.kwargs)
        _ = call.dedup_key  # an error in the user's own function is the body's
        step = Step(
            name=call.name,
            ordinal=self._next(call.name),
            payload=payload,
            digest=digest(call.id.encode() + b"\0" + payload),
            future=self.loop.create_future(),
            where=where,
            call=call,
        )
        return await self._ask(step)

    async def _ask(self, step: Step) -> Any:
        if self.loop.dead:
            return await self.loop.create_future()
        self.steps[step.key] = step
        self.commands.append(step)
        try:
            return await step.future
        finally:
            if step.future.cancelled() and not self.loop.dead:
                self.cancelled[step.key] = step

    async def wait_deferred(self, name: str, timeout: timedelta | None) -> bytes:
        state = self._deferred(name)
        state.waiting += 1
        try:
            if timeout is None:
                return await asyncio.shield(state.future)
            async with asyncio.timeout(timeout.total_seconds()):
                return await asyncio.shield(state.future)
        finally:
            state.waiting -= 1

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(duration.total_seconds())

    async def sleep_until(self, when: datetime) -> None:
        if when.tzinfo is None:
            raise ConfigurationError("sleep_until() needs an aware datetime; give it a time zone")
        await asyncio.sleep((when - _EPOCH).total_seconds() - self.loop.time())

    def now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self.loop.time())

    def uuid(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def compensate(self, undo: Callable[[], Awaitable[object]]) -> None:
        self._undo.append(undo)

    # --- inside ----------------------------------------------------------------------------------

    async def _main(self, request: Any) -> Any:
        try:
            result = await self.instance.execute(request)
            self._refuse_not_awaited()
            return result
        except GeneratorExit:
            raise
        except BaseException:
            if not self.loop.dead:
                await self._compensate()
            raise

    def _refuse_not_awaited(self) -> None:
        """A step that was called and not awaited has not run, and nobody would hear of it."""
        for coroutine, name, (code, line) in self._not_awaited.values():
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:  # not cancelled
                raise ConfigurationError(
                    f"step {name} was called but not awaited, so it has not run"
                    f" ({code.co_filename}:{line} in {code.co_qualname}): put 'await' before it"
                )

    async def _compensate(self) -> None:
        self._compensating = True
        while self._undo:
            undo = self._undo.pop()
            try:
                await undo()
            except Exception as error:
                raise CompensationFailed(str(error)) from error

    def _next(self, name: str) -> int:
        ordinal = self._ordinals.get(name, 0)
        self._ordinals[name] = ordinal + 1
        return ordinal

    def _deferred(self, name: str) -> _DeferredState:
        state = self._deferreds.get(name)
        if state is None:
            state = self._deferreds[name] = _DeferredState(self.loop.create_future())
        return state


def copy_of(prototype: Workflow[Any, Any]) -> Workflow[Any, Any]:
    """A shallow copy of the registered object, for one execution or one step."""
    made = object.__new__(type(prototype))
    made.__dict__.update(prototype.__dict__)
    return made
