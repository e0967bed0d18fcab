"""The body of one execution: a workflow's code on its deterministic loop, without any I/O.

``workflow.resident`` feeds it events (a step's end, a timer, a resolution) and takes the commands
it leaves: steps to run and calls to send. The same events in the same order give the same commands;
that is what replay rests on.
"""

import asyncio
import contextvars
import inspect
import json
import random
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from types import CodeType, FrameType
from typing import Any, NoReturn, TypeVar, cast
from uuid import UUID

from engine.cluster.handle import EntityCall
from engine.cluster.queue import Debounce, Queue, queue_of
from engine.cluster.rpc import volatile_step
from engine.core.clock import due_at, seconds, within
from engine.core.codec import digest
from engine.core.errors import (
    ConfigurationError,
    ErrorDetails,
    InvalidPayload,
    NonDeterminism,
    StepFailed,
)
from engine.core.ids import Snowflake
from engine.core.journal import Outcome
from engine.core.names import entity_id
from engine.core.reply import Exit, Failure, Success
from engine.storage.storable import check_attributes
from engine.workflow.activity import BODY, StepDefinition
from engine.workflow.child import BodyExecution, ChildRun, Message, OnParentClose, Place
from engine.workflow.definition import Workflow, WorkflowDefinition, definition_of
from engine.workflow.entity_step import EntityStep
from engine.workflow.handlers import HandlerDefinition
from engine.workflow.loop import DeterministicLoop, Interruption
from engine.workflow.patches import Patches
from engine.workflow.queue_step import QueueStep
from engine.workflow.repair import Origin
from engine.workflow.step import Call, Step, StepKey, line_of, step_error

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LONGEST = 255


R = TypeVar("R")
_Line = tuple[CodeType, int]
_Call = tuple[Coroutine[Any, Any, Any], str, tuple[CodeType, int]]
"""A step as it was called: what is to be awaited, its name, and where."""


TOO_LATE = Failure(ErrorDetails("ExecutionEnded", "the execution ended before it was answered"))
"""The answer of an update that nobody is left to handle."""


class CompensationFailed(Exception):
    """An undo ended with an error after all its attempts: the execution is blocked, not failed."""


class ContinueAsNew(BaseException):
    """The body wants to go on as a new run; ``payload`` is its request."""

    def __init__(self, payload: bytes) -> None:
        super().__init__()
        self.payload = payload


class Misfit(BaseException):
    """Out of the body at once: its code does not fit."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An update's end."""

    source: Snowflake
    name: str
    exit: Exit


@dataclass(slots=True)
class _DeferredState:
    future: asyncio.Future[bytes]
    waiting: int = 0


class Body:
    """Runs ``workflow.execute(request)``; see the module's docstring for what goes in and out.

    ``observed`` is called whenever the body reads its clock.
    """

    __slots__ = (
        "_called",
        "_conditions",
        "_cut_off",
        "_deferreds",
        "_failure",
        "_handling",
        "_id",
        "_misfit",
        "_not_awaited",
        "_ordinals",
        "_random",
        "_run",
        "_uncounted",
        "_undo",
        "_unwinding",
        "answers",
        "cancelled",
        "commands",
        "compensates",
        "described",
        "execution_id",
        "instance",
        "interrupted",
        "loop",
        "origin",
        "overdue",
        "patches",
        "steps",
        "suspending",
        "task",
    )

    def __init__(
        self,
        *,
        prototype: Workflow[Any, Any],
        request: Any,
        id: Snowflake,
        execution_id: str,
        run: int,
        origin: Origin,
        patches: Patches,
        observed: Callable[[], None],
    ) -> None:
        self.origin: Origin = origin
        self.execution_id = execution_id
        self.suspending: bool = False
        self.interrupted: str | None = None
        self.patches = patches
        self._misfit: NonDeterminism | None = None
        self.overdue: bool = False
        self.answers: list[Answer] = []
        self.described: dict[str, object] = {}
        self._random: random.Random | None = None
        self.loop: DeterministicLoop = DeterministicLoop(
            observed=observed, salt=digest(origin.seed.encode())
        )
        self.steps: dict[StepKey, Step] = {}
        self.commands: list[Step] = []
        self.cancelled: dict[StepKey, Step] = {}
        self._id = id
        self._run = run
        self._ordinals: dict[str, int] = {}
        self._called = 0
        self._not_awaited: dict[int, _Call] = {}
        self._deferreds: dict[str, _DeferredState] = {}
        self._undo: list[Callable[[], Awaitable[object]]] = []
        self._unwinding = False
        self._cut_off: set[asyncio.Task[None]] = set()
        self.compensates: bool = False
        self._conditions: dict[asyncio.Future[None], tuple[Callable[[], bool], _Line]] = {}
        self._handling: dict[asyncio.Task[None], Answer | None] = {}
        self._failure: BaseException | None = None
        self._uncounted = 0
        self.instance: Workflow[Any, Any] = copy_of(prototype)
        self.instance.__dict__[BODY] = self
        self.task: asyncio.Task[Any] = self.loop.create_task(
            self._main(request), context=contextvars.Context()
        )

    # --- fed by the resident execution ------------------------------------------------------------

    @property
    def done(self) -> bool:
        return self.task.done() or self.loop.fatal is not None

    def drain(self) -> bool:
        """Run until nothing goes on by itself; False when the turn's budget ran out first.

        ``NonDeterminism`` when it has found out itself that its code is not the one it needs.
        """
        while self.loop.drain():
            if self._misfit is not None:
                if self.task.done() and not self.task.cancelled():
                    self.task.exception()  # it is known
                raise self._misfit
            if not self._look():
                while self._uncounted:
                    self._uncounted -= 1
                    self.task.uncancel()
                return True
        return False

    def set_time(self, at: datetime) -> None:
        """Its clock never steps back, also not for what was resolved in an earlier run."""
        now = (at - _EPOCH).total_seconds()
        if now > self.loop.now:
            self.loop.now = now

    def end_step(self, step: Step, outcome: Outcome, value: object) -> None:
        """Hand a step's result (or, if it failed, its ``ErrorDetails``) to whoever awaits it."""
        del self.steps[step.key]
        if step.future.done():
            return
        if outcome is Outcome.OK:
            step.future.set_result(value)
        elif isinstance(value, ErrorDetails):
            make = step_error if step.call is None else step.call.error
            error = make(step, outcome, value)
            typed = definition_of(type(self.instance)).typed(value)
            if typed is not None:
                typed.__cause__ = error
            step.future.set_exception(typed or error)
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

        Compensations are not cut short: they are what an interrupt asks for; the cleanup of
        handlers before them is. An interrupt that was caught is over: the count that asyncio keeps
        of cancellations is put back afterwards.
        """
        if self._unwinding:
            self._cancel_handlers()
        else:
            self.interrupted = reason
            self._cancel(reason)

    def expire(self) -> None:
        """Its time is over: as an interrupt, but the execution fails."""
        self.overdue = True
        self.interrupt("its time is over")

    def signal(
        self, handler: HandlerDefinition, args: list[object], kwargs: dict[str, object]
    ) -> None:
        """Let a handler run, as a task beside the main one."""
        self._handle(handler, args, kwargs, None)

    def update(
        self,
        source: Snowflake,
        handler: HandlerDefinition,
        args: list[object],
        kwargs: dict[str, object],
    ) -> None:
        """As ``signal``; its end will be among the ``answers``."""
        self._handle(handler, args, kwargs, source)

    def refusal(
        self, handler: HandlerDefinition, args: list[object], kwargs: dict[str, object]
    ) -> BaseException | None:
        """Why an update must not run, by its validator."""
        validator = handler.validator
        if validator is None:
            return None
        with self.loop.running(), self.loop.looking(f"the validator {validator.__qualname__}"):
            try:
                validator(self.instance, *args, **kwargs)
            except BaseException as error:  # noqa: BLE001 -- that is its answer
                return error
        return None

    def ask(
        self, handler: HandlerDefinition, args: list[object], kwargs: dict[str, object]
    ) -> object:
        """What a query sees. Raises what it raises."""
        with self.loop.running(), self.loop.looking(f"the query {handler.function.__qualname__}"):
            return handler.function(self.instance, *args, **kwargs)

    @property
    def unanswered(self) -> list[Answer]:
        """The updates that were let pass and have no answer, as if they failed now."""
        return [answer for answer in self._handling.values() if answer is not None]

    @property
    def children(self) -> list[tuple[Step, ChildRun]]:
        """Those that run still, as far as this body knows, and are not to outlive it."""
        return [
            (step, step.call)
            for step in {**self.steps, **self.cancelled}.values()
            if isinstance(step.call, ChildRun)
            and not step.call.abandoned
            and (step.future.cancelled() or not step.future.done())
        ]

    @property
    def abandoned(self) -> list[tuple[Step, ChildRun]]:
        """Children that were asked for, have not been sent, and are to outlive it."""
        return [
            (step, step.call)
            for step in self.steps.values()
            if isinstance(step.call, ChildRun) and step.call.abandoned and step.request_id is None
        ]

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
        self._conditions.clear()
        self._handling.clear()
        self._cut_off.clear()
        for coroutine, _, _ in self._not_awaited.values():
            coroutine.close()
        self._not_awaited.clear()
        self.loop.free()

    @property
    def conditions(self) -> list[str]:
        """The lines that wait for a condition."""
        return [line_of(*where) for _, where in self._conditions.values()]

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

        def make() -> Step:
            payload = definition.signature.encode(args, kwargs)
            return Step(
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

        return self._called_at(name, where, make)

    def call_entity(self, call: EntityCall) -> Coroutine[Any, Any, Any]:
        if not call.rpc.persisted:
            raise volatile_step(call.name)
        frame = sys._getframe(3)  # pyright: ignore[reportPrivateUsage]
        where = (frame.f_code, frame.f_lineno)

        def make() -> Step:
            payload = call.rpc.signature.validated(call.args, call.kwargs)
            _ = call.dedup_key  # an error in the user's own function is the body's
            return self._call(EntityStep(call), payload, call.id, where)

        return self._called_at(call.name, where, make)

    def submit(
        self,
        queue: type[Queue[Any, Any]],
        item: object,
        *,
        id: str | None,
        key: str | None,
        priority: int | None,
        at: datetime | None,
        delay: timedelta | None,
        debounce: Debounce | None,
    ) -> Coroutine[Any, Any, Any]:
        frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        where = (frame.f_code, frame.f_lineno)
        definition = queue_of(queue)

        def make() -> Step:
            payload = definition.signature.validated((item,), {})
            deliver_at = due_at(at, delay, self.now())
            terms = definition.terms(
                item, id=id, key=key, priority=priority, deliver_at=deliver_at, debounce=debounce
            )
            call = QueueStep(definition, terms, id, deliver_at)
            return self._call(call, payload, "" if id is None else id, where)

        return self._called_at(definition.name, where, make)

    def run_child(
        self, workflow: type[Workflow[Any, Any]], request: object, key: str | None
    ) -> Coroutine[Any, Any, Any]:
        frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        where = (frame.f_code, frame.f_lineno)
        definition = definition_of(workflow)

        def make() -> Step:
            return self._child(definition, request, key, where, abandoned=False)

        return self._called_at(definition.name, where, make)

    def start_child(
        self,
        workflow: type[Workflow[Any, Any]],
        request: object,
        key: str | None,
        on_parent_close: OnParentClose,
    ) -> Coroutine[Any, Any, BodyExecution[Any]]:
        frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
        where = (frame.f_code, frame.f_lineno)
        definition = definition_of(workflow)
        abandoned = on_parent_close == "abandon"

        async def start(number: int) -> BodyExecution[Any]:
            self._not_awaited.pop(number, None)
            step = self._child(definition, request, key, where, abandoned=abandoned)
            self._put(step)
            assert isinstance(step.call, ChildRun)
            return BodyExecution(self, definition, step.call.place.id, step)

        return self._noted(definition.name, where, start(self._next_call()))

    def execution(self, workflow: type[Workflow[Any, Any]], id: str) -> BodyExecution[Any]:
        return BodyExecution(self, definition_of(workflow), entity_id(id, what="the id"))

    async def tell(self, message: Message, payload: bytes) -> Any:
        """Let another execution be told something; whether it came in time."""
        where = _users_line(sys._getframe(0))  # pyright: ignore[reportPrivateUsage]
        number = self._next_call()
        return await self._ask(
            number, lambda: self._call(message, payload, message.place.id, where)
        )

    def _child(
        self,
        definition: WorkflowDefinition,
        request: object,
        key: str | None,
        where: tuple[CodeType, int],
        *,
        abandoned: bool,
    ) -> Step:
        """The run of a child. Its id is its key, given or that of its class; else it is made of its
        parent's, so that each call has a child of its own."""
        valid = definition.request.validate(request)
        payload = definition.request.encode(valid)
        if key is None and definition.has_key:
            key = definition.cls.key(valid)
        parent = type(self.instance).name
        run = "" if self._run == 1 else f"{self._run}."
        own = f"{parent}/{self.execution_id}/{run}{self._ordinals.get(definition.name, 0) + 1}"
        ordinal = self._ordinals.get(definition.name, 0)
        id = entity_id(own if key is None else key, what=f"the key of child {definition.name}")
        target = "" if key is None else id
        there = self.origin.child(definition.name, ordinal, _digest(target, payload))
        call = ChildRun(
            Place(definition, there or id),
            parent=self._id,
            shared=key is not None or there is not None,
            abandoned=abandoned,
        )
        return self._call(call, payload, target, where)

    def _call(self, call: Call, payload: bytes, target: str, where: tuple[CodeType, int]) -> Step:
        return Step(
            name=call.name,
            ordinal=self._next(call.name),
            payload=payload,
            digest=_digest(target, payload),
            future=self.loop.create_future(),
            where=where,
            call=call,
        )

    def _called_at(
        self, name: str, where: tuple[CodeType, int], make: Callable[[], Step]
    ) -> Coroutine[Any, Any, Any]:
        """What a call in the body gives: to be awaited, which is noticed when it is not."""
        return self._noted(name, where, self._ask(self._next_call(), make))

    def _next_call(self) -> int:
        self.loop.refuse_looking()
        self._called += 1
        return self._called

    def _noted(
        self, name: str, where: _Line, made: Coroutine[Any, Any, R]
    ) -> Coroutine[Any, Any, R]:
        """As the last call, which is forgotten when it begins."""
        self._not_awaited[self._called] = made, name, where
        return made

    def awaited(
        self, name: str, begin: Callable[[], Coroutine[Any, Any, R]]
    ) -> Coroutine[Any, Any, R]:
        """What begins with its first await, which is noticed when there is none."""
        number = self._next_call()

        async def begun() -> R:
            self._not_awaited.pop(number, None)
            return await begin()

        return self._noted(name, _users_line(sys._getframe(0)), begun())  # pyright: ignore[reportPrivateUsage]

    async def _ask(self, number: int, make: Callable[[], Step]) -> Any:
        self._not_awaited.pop(number, None)
        step = make()
        if self.loop.dead:
            return await self.loop.create_future()
        self._put(step)
        try:
            return await step.future
        finally:
            if step.future.cancelled() and not self.loop.dead:
                self.cancelled[step.key] = step

    def _put(self, step: Step) -> None:
        if not self.loop.dead:
            self.steps[step.key] = step
            self.commands.append(step)

    async def wait_until(self, condition: Callable[[], bool], timeout: timedelta | None) -> bool:
        if condition():
            return True
        future: asyncio.Future[None] = self.loop.create_future()
        where = _users_line(sys._getframe(0))  # pyright: ignore[reportPrivateUsage]
        self._conditions[future] = condition, where
        scope = within(timeout)
        try:
            async with scope:
                await future
        except TimeoutError:
            if not scope.expired():
                raise
            return False
        finally:
            del self._conditions[future]
        return True

    async def continue_as_new(self, request: object) -> NoReturn:
        if asyncio.current_task() is not self.task:
            raise ConfigurationError(
                "continue_as_new() ends the whole run, so it is for execute() alone: let the task"
                " or handler that wants it set a flag, and call it there"
            )
        codec = definition_of(type(self.instance)).request
        payload = codec.encode(codec.validate(request))
        await self._let_handlers_end()
        raise ContinueAsNew(payload)

    async def wait_deferred(self, name: str, timeout: timedelta | None) -> bytes:
        state = self._deferred(name)
        state.waiting += 1
        try:
            async with within(timeout):
                return await asyncio.shield(state.future)
        finally:
            state.waiting -= 1

    async def sleep(self, duration: timedelta) -> None:
        await asyncio.sleep(seconds(duration, "sleep()"))

    async def sleep_until(self, when: datetime) -> None:
        if when.tzinfo is None:
            raise ConfigurationError("sleep_until() needs an aware datetime; give it a time zone")
        await asyncio.sleep((when - _EPOCH).total_seconds() - self.loop.time())

    def now(self) -> datetime:
        return _EPOCH + timedelta(seconds=self.loop.time())

    @property
    def random(self) -> random.Random:
        self.loop.refuse_looking()
        if self._random is None:
            self._random = random.Random(self.origin.seed)
        return self._random

    def uuid(self) -> UUID:
        return UUID(int=self.random.getrandbits(128), version=4)

    def patched(self, change: str) -> bool:
        answer = self.patches[_change(change)]
        if answer is None:
            self.loop.refuse_looking()
            answer = self.patches.ask(change)
        return answer

    def deprecate_patch(self, change: str) -> None:
        self.loop.refuse_looking()
        answer = self.patches[_change(change)]
        if answer is None and not self.patches.replaying:
            self.patches.ask(change)  # for runners that still have both ways
        elif answer is False:
            self._misfit = NonDeterminism(
                expected=f"that it goes the way from before the change {change!r}",
                found="has that way no more",
                where=line_of(*_users_line(sys._getframe(0))),  # pyright: ignore[reportPrivateUsage]
            )
            raise Misfit

    def compensate(self, undo: Callable[[], Awaitable[object]]) -> None:
        self.loop.refuse_looking()
        self._undo.append(undo)

    def set_attributes(self, attributes: Mapping[str, object]) -> None:
        self.loop.refuse_looking()
        try:
            payload = json.dumps(dict(attributes)).encode()
        except (TypeError, ValueError) as error:
            raise InvalidPayload(f"attributes must be plain JSON: {error}") from error
        check_attributes(payload)
        self.described.update(json.loads(payload))

    # --- inside ----------------------------------------------------------------------------------

    async def _main(self, request: Any) -> Any:
        try:
            return await self._execute(request)
        except (GeneratorExit, ContinueAsNew, Misfit):
            raise
        except BaseException as error:
            if (wish := _wish_in(error)) is not None:
                raise wish from None
            if not self.loop.dead:
                self._unwinding = True
                self._cut_off.update(self._handling)
                self._cancel_handlers()
                if self._cut_off:
                    await asyncio.wait(self._cut_off)
                await self._compensate()
            raise

    def _cancel(self, reason: str) -> None:
        self.task.cancel(Interruption(reason))
        self._uncounted += 1

    def _cancel_handlers(self) -> None:
        """Those that ran when the main task failed; who comes later runs beside what undoes it."""
        for task in self._handling:
            if task in self._cut_off:
                task.cancel()

    async def _execute(self, request: Any) -> Any:
        try:
            work: object = self.instance.execute(request)
            if not inspect.isawaitable(work):
                name, gave = type(self.instance).__qualname__, type(work).__name__
                raise ConfigurationError(
                    f"{name}.execute() gave a {gave}, which cannot be awaited:"
                    " write 'async def execute'"
                )
            result = await work
            self._refuse_not_awaited()
            await self._let_handlers_end()
        except asyncio.CancelledError:
            if self._failure is not None:
                raise self._failure from None
            raise
        return result

    async def _let_handlers_end(self) -> None:
        """Who was let in is let out: what runs of signals and updates ends before the run does."""
        while self._handling:
            await asyncio.wait(list(self._handling))

    def _handle(
        self,
        handler: HandlerDefinition,
        args: list[object],
        kwargs: dict[str, object],
        source: Snowflake | None,
    ) -> None:
        with self.loop.running():
            task = self.loop.create_task(
                self._run_handler(handler, args, kwargs, source), context=contextvars.Context()
            )
        unanswered = None if source is None else Answer(source, handler.name, TOO_LATE)
        self._handling[task] = unanswered
        task.add_done_callback(self._handled)

    def _handled(self, task: asyncio.Task[None]) -> None:
        answer = self._handling.pop(task)
        if answer is not None and task.cancelled():
            self.answers.append(answer)

    async def _run_handler(
        self,
        handler: HandlerDefinition,
        args: list[object],
        kwargs: dict[str, object],
        source: Snowflake | None,
    ) -> None:
        try:
            result = handler.function(self.instance, *args, **kwargs)
            if inspect.isawaitable(result):
                result = await result
            if source is not None:
                exit: Exit = Success(handler.signature.result.encode(result))
                self.answers.append(Answer(source, handler.name, exit))
        except (GeneratorExit, Misfit):
            raise
        except BaseException as error:  # it is the answer, or the end of the execution
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                raise
            if source is not None:
                self.answers.append(Answer(source, handler.name, Failure(ErrorDetails.of(error))))
            elif self._failure is None and not (self.task.done() or self._unwinding):
                self._failure = error
                self._cancel("a handler has failed")

    def _look(self) -> bool:
        """Look at what ``wait_until`` waits for; whether any of it has come."""
        met = False
        if not self._conditions:
            return met
        with self.loop.running():
            for future, (condition, _) in list(self._conditions.items()):
                if future.done():
                    continue
                try:
                    with self.loop.looking("a condition of wait_until()"):
                        true = condition()
                except StopIteration:  # which a future cannot carry
                    future.set_exception(RuntimeError("the condition raised StopIteration"))
                    met = True
                except BaseException as error:  # noqa: BLE001 -- it is the waiting code's
                    future.set_exception(error)
                    met = True
                else:
                    if true:
                        future.set_result(None)
                        met = True
        return met

    def _refuse_not_awaited(self) -> None:
        """What was called and not awaited has not run, and nobody would hear of it."""
        for coroutine, name, (code, line) in self._not_awaited.values():
            if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:  # not cancelled
                what = name if name.endswith(")") else f"step {name}"
                raise ConfigurationError(
                    f"{what} was called but not awaited, so it has not run"
                    f" ({code.co_filename}:{line} in {code.co_qualname}): put 'await' before it"
                )

    async def _compensate(self) -> None:
        self.compensates = bool(self._undo)
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


def _wish_in(error: BaseException) -> ContinueAsNew | None:
    """The wish to go on as a new run that a TaskGroup has wrapped, if nothing else came with it."""
    while isinstance(error, BaseExceptionGroup):
        inner = cast("tuple[BaseException, ...]", error.exceptions)
        if len(inner) != 1:
            return None
        error = inner[0]
    return error if isinstance(error, ContinueAsNew) else None


def _digest(target: str, payload: bytes) -> int:
    """That of a call of ``target``; empty: of a child that is named after its parent."""
    return digest(target.encode() + b"\0" + payload)


def _change(change: str) -> str:
    if not change or len(change) > _LONGEST:
        raise ConfigurationError(
            f"a change needs a name of 1 to {_LONGEST} characters, and {change[:50]!r} is none"
        )
    return change


def _users_line(frame: FrameType) -> _Line:
    """The nearest line of a frame that is not of this package."""
    while frame.f_back is not None and frame.f_globals.get("__package__") == __package__:
        frame = frame.f_back
    return frame.f_code, frame.f_lineno


def copy_of(prototype: Workflow[Any, Any]) -> Workflow[Any, Any]:
    """A shallow copy of the registered object, for one execution or one step."""
    made = object.__new__(type(prototype))
    made.__dict__.update(prototype.__dict__)
    return made
