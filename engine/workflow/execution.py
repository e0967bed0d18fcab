"""``Execution``: what can be done with an execution, from outside and from another's body.

The client's is ``engine.client_execution``; that of a body, whose every call is a durable step, is
``workflow.child``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, overload

from engine.core.errors import (
    ConfigurationError,
    ExecutionFailed,
    ExecutionInterrupted,
    ExecutionTerminated,
)
from engine.core.ids import Snowflake
from engine.core.outcome import ExecutionInfo, Failed, JournalEvent, Pending, Succeeded
from engine.core.reply import Defect, Exit, Failure, Interrupted, Success, Terminated
from engine.workflow.deferred import Deferred
from engine.workflow.definition import WorkflowDefinition
from engine.workflow.handlers import HandlerDefinition, HandlerKind, handler_of

UNCHANGED: Final = object()
"""The request of an execution that is forked."""

T = TypeVar("T")
V = TypeVar("V")
P = ParamSpec("P")
R = TypeVar("R")


class Execution(ABC, Generic[T]):
    """A handle on one execution. ``id`` is its id within its workflow."""

    id: str

    def __init__(self, definition: WorkflowDefinition, id: str) -> None:
        self.id = id
        self._definition = definition

    def __repr__(self) -> str:
        return f"Execution({self._name})"

    @property
    def _name(self) -> str:
        return f"{self._definition.name}/{self.id}"

    @property
    @abstractmethod
    def request_id(self) -> Snowflake:
        """The id of its run request; known once it was started or looked up through this handle."""

    @abstractmethod
    async def poll(self) -> Pending | Succeeded[T] | Failed | Interrupted | Terminated:
        """What has become of it, now. ``NotFound`` when there is no such execution."""

    @abstractmethod
    async def join(self, timeout: timedelta | None = None) -> T:
        """Its result, once it has one. Any number of callers, in any process, at any time.

        Raises ``ExecutionFailed`` or what the workflow says it ``raises``,
        ``ExecutionInterrupted``, ``ExecutionTerminated``, ``TimeoutError`` after ``timeout`` (the
        execution goes on), and ``NotFound``, within some seconds, of one that is not stored: it was
        pruned, or the transaction that starts it has not committed.
        """

    @abstractmethod
    async def interrupt(self, reason: str = "") -> None:
        """Ask it to end early: its body is cancelled, its cleanup and compensations run, and so
        are its children. No-op once it has ended."""

    @abstractmethod
    async def terminate(self, reason: str = "") -> None:
        """End it here and now: no step of it runs again, no compensation either. Its children are
        interrupted. No-op once it has ended."""

    @abstractmethod
    async def pause(self, reason: str = "") -> None:
        """Let it come to a stand: what runs of its steps ends, and nothing is started until
        ``resume``. What it is told meanwhile waits, an interrupt too, and timers that fall due fire
        then; ``terminate`` ends it at once. Its children go on. No-op once it has ended."""

    @abstractmethod
    async def resume(self, reason: str = "") -> None:
        """Let it go on after ``pause``. No-op when it is not paused; if its workflow is, it goes
        on when that is resumed too."""

    @abstractmethod
    async def resolve(self, deferred: Deferred[V], value: V) -> bool:
        """Give the value it waits for, or will. True for the first; False when it was resolved or
        rejected before, or has ended."""

    @abstractmethod
    async def reject(self, deferred: Deferred[V], error: str) -> bool:
        """Let the wait for it fail with ``StepFailed``. True and False as for ``resolve``."""

    @abstractmethod
    async def signal(
        self,
        handler: Callable[Concatenate[Any, P], object],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> None:
        """Tell it something: ``execution.signal(Chat.say, "hi")``. Durable once this returns, and
        handled in the order one sender sends. ``NotFound`` when it is not there or has ended."""

    @overload
    async def update(
        self,
        handler: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]],
        /,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R: ...
    @overload
    async def update(
        self, handler: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R: ...
    @abstractmethod
    async def update(self, handler: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Tell it something and wait for the answer, which is given once. ``UpdateRejected`` when
        its validator refused, ``RequestFailed`` when the handler raised, or the execution ended
        first."""

    @abstractmethod
    async def query(
        self, handler: Callable[Concatenate[Any, P], R], /, *args: P.args, **kwargs: P.kwargs
    ) -> R:
        """What a ``@query`` of it sees now, also when it sleeps or has ended. ``NoRunner`` when no
        runner owns it; ``RequestFailed`` (of type ``RunnerLost``) when two were lost with it in
        hand."""

    @abstractmethod
    async def describe(self) -> ExecutionInfo:
        """Status, times, owner, and why it does not go on."""

    @abstractmethod
    async def history(self) -> list[JournalEvent]:
        """Its journal: every step, attempt, timer and message, in the order the body saw them.

        From a client it is a ``History``, which can be exported and replayed.
        """

    @abstractmethod
    async def retry(self) -> None:
        """Let it go on from its last good step: one that failed, or was ended, in a new run, with
        the step that failed tried anew under the same idempotency key; one that is blocked, from
        where it stands, and a compensation that failed once more. Children that were left alone
        (``"abandon"``) are found again by the same call of the new run.

        No-op while it goes on anyway. ``NotFound`` when it has succeeded, ``ConfigurationError``
        when its compensations have undone what it would go on from.
        """

    @abstractmethod
    async def fork(
        self, from_step: str | int, *, key: str, request: object = UNCHANGED
    ) -> "Execution[T]":
        """Start another execution under ``key`` that has done already what this one had before a
        step (``"charge"``: its first call, ``"charge#2"``: its second) or a position of its
        journal; with ``request``, for that. ``NotFound`` for an unknown step, ``AlreadyStarted``
        when the key is taken."""

    def result_of(self, exit: Exit) -> T:
        """The result in an exit, or its error raised."""
        match exit:
            case Success(value):
                result: T = self._definition.result.decode(value)
                return result
            case Failure(error) | Defect(error):
                failed = ExecutionFailed(f"{self._name} failed: {error}", error)
                raise self._definition.typed(error) or failed from failed
            case Interrupted(reason):
                raise ExecutionInterrupted(reason)
            case Terminated(reason):
                raise ExecutionTerminated(reason)

    def _own(self, deferred: Deferred[Any]) -> str:
        if not isinstance(deferred, Deferred):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"{deferred!r} is not a deferred; pass that of the workflow's class, as in"
                " execution.resolve(Signup.confirmed, ...)"
            )
        if self._definition.deferreds.get(deferred.name) is not deferred:
            raise ConfigurationError(
                f"{deferred.owner}.{deferred.name} is not a deferred of {self._definition.name}"
            )
        return deferred.name

    def _handler(self, method: Callable[..., object], kind: HandlerKind) -> HandlerDefinition:
        found = handler_of(method)
        known = None if found is None else self._definition.handlers.get(found.name)
        if found is None or known is not found or found.kind is not kind:
            raise ConfigurationError(
                f"{method!r} is not a @{kind.value} of {self._definition.name}; pass the method of"
                f" its class, as in execution.{kind.value}(Chat.say, ...)"
            )
        return found
