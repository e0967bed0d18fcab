"""``@activity`` and ``@transaction``: mark the methods of a workflow that are durable steps.

In the body a call of one goes to ``workflow.body``; ``workflow.steps`` runs it on the host.
"""

import functools
import inspect
from asyncio import events
from collections.abc import Callable, Coroutine
from datetime import timedelta
from enum import Enum
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast, overload

from engine.core.codec import Signature
from engine.core.errors import ConfigurationError
from engine.core.names import definition_name
from engine.core.retry import RetryPolicy
from engine.storage.transaction import Transaction
from engine.workflow.activity_group import ActivityGroup
from engine.workflow.loop import DeterministicLoop

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])
S = TypeVar("S")
P = ParamSpec("P")
R = TypeVar("R")

BODY = "_outlast_body"
_DEFINITION = "__outlast_step__"


class StepKind(Enum):
    ACTIVITY = "activity"
    TRANSACTION = "transaction"


class StepDefinition:
    """One kind of step of a workflow class."""

    __slots__ = (
        "_signature",
        "function",
        "heartbeat_timeout",
        "key",
        "kind",
        "name",
        "retry",
        "sync",
        "timeout",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        kind: StepKind,
        name: str | None,
        retry: RetryPolicy,
        timeout: timedelta | None,
        heartbeat_timeout: timedelta | None,
        key: Callable[..., str] | None,
    ) -> None:
        what = f"step {function.__qualname__}"
        self.function: Callable[..., Any] = function
        self.kind: StepKind = kind
        self.name: str = definition_name(name or function.__name__, what=what)
        self.retry: RetryPolicy = retry
        self.timeout: timedelta | None = timeout
        self.heartbeat_timeout: timedelta | None = heartbeat_timeout
        self.key: Callable[..., str] | None = key
        self.sync: bool = not inspect.iscoroutinefunction(function)
        self._signature: Signature | None = None
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"{what} is a generator; return its results as one value")
        if kind is StepKind.TRANSACTION and self.sync:
            raise ConfigurationError(f"{what} must be 'async def': it awaits its transaction")
        if not isinstance(retry, RetryPolicy):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"{what} has {retry!r} as its retry: write RetryPolicy(attempts=...)"
            )
        for option, limit in (("timeout", timeout), ("heartbeat_timeout", heartbeat_timeout)):
            if limit is None:
                continue
            if not isinstance(limit, timedelta):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise ConfigurationError(
                    f"{what} has {limit!r} as its {option}: write timedelta(seconds=...)"
                )
            if limit <= timedelta(0):
                raise ConfigurationError(f"{what} has a {option} that is not above zero")

    def done_by(self, function: Callable[..., Coroutine[Any, Any, Any]]) -> "StepDefinition":
        """The same step to the journal, its work done by another function, of the same arguments
        (a transaction's without the transaction) and results."""
        made = object.__new__(StepDefinition)
        for slot in self.__slots__:
            setattr(made, slot, getattr(self, slot))
        made._signature = self.signature
        made.sync = False
        skip = 2 if self.kind is StepKind.TRANSACTION else 1

        async def work(*args: Any, **kwargs: Any) -> Any:
            return await function(*args[skip:], **kwargs)

        made.function = functools.wraps(self.function)(work)
        return made

    @property
    def signature(self) -> Signature:
        if self._signature is None:
            skip = 2 if self.kind is StepKind.TRANSACTION else 1
            self._signature = Signature(self.function, what=self.function.__qualname__, skip=skip)
        return self._signature

    @property
    def line(self) -> str:
        """Where the step is defined."""
        code = self.function.__code__
        return f"{code.co_filename}:{code.co_firstlineno}"


# Where a type is made up here, a coroutine yields ``object`` and takes None: an ``Any`` in their
# place makes mypy give up on the overloads of ``asyncio.gather``.


class StepDecorator(Protocol):
    """``@activity(...)`` with options: the step is awaited, also when its method is not async."""

    @overload
    def __call__(self, function: F, /) -> F: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, P], R], /
    ) -> Callable[Concatenate[S, P], Coroutine[object, None, R]]: ...


class TransactionDecorator(Protocol):
    """``@transaction(...)`` with options: callers do not pass the transaction."""

    def __call__(
        self, function: Callable[Concatenate[S, Transaction, P], Coroutine[Any, Any, R]], /
    ) -> Callable[Concatenate[S, P], Coroutine[object, None, R]]: ...


@overload
def activity(function: F, /) -> F: ...
@overload
def activity(
    function: Callable[Concatenate[S, P], R], /
) -> Callable[Concatenate[S, P], Coroutine[object, None, R]]: ...
@overload
def activity(
    *,
    retry: RetryPolicy = ...,
    timeout: timedelta | None = None,
    heartbeat_timeout: timedelta | None = None,
    name: str | None = None,
    key: Callable[..., str] | None = None,
) -> StepDecorator: ...
def activity(
    function: Callable[..., Any] | None = None,
    /,
    *,
    retry: RetryPolicy | None = None,
    timeout: timedelta | None = None,
    heartbeat_timeout: timedelta | None = None,
    name: str | None = None,
    key: Callable[..., str] | None = None,
) -> Any:
    """A step that may reach outside: it runs at least once, and never again once its result is
    stored.

    A method without ``async`` runs in a thread. ``retry``: how often a failed attempt is followed
    by another (default: ``RetryPolicy()``, five attempts); none follows one whose result cannot be
    stored. ``timeout`` is that of one attempt; a
    thread cannot be stopped, so what it does after that is dropped, and it can see that from
    ``self.cancelled`` or by ``self.heartbeat()``. ``heartbeat_timeout``: an attempt that has not
    called ``self.heartbeat()`` for so long has timed out.
    ``name`` is the name in the journal; keep it when you rename the method. ``key`` computes a text
    from the call's arguments that tells calls of one step apart, instead of their order.
    ``self.idempotency_key`` is the same on every attempt: hand it to what you call.

    On a plain object, as in a unit test, it is a plain call:

    >>> import asyncio
    >>> from engine import Workflow
    >>> class Count(Workflow[str, int]):
    ...     @activity(retry=RetryPolicy(attempts=3))
    ...     def words(self, text: str) -> int:
    ...         return len(text.split())
    >>> asyncio.run(Count().words("one two"))
    2
    """
    return _step(
        function,
        kind=StepKind.ACTIVITY,
        retry=retry,
        timeout=timeout,
        heartbeat_timeout=heartbeat_timeout,
        name=name,
        key=key,
    )


@overload
def transaction(
    function: Callable[Concatenate[S, Transaction, P], Coroutine[Any, Any, R]], /
) -> Callable[Concatenate[S, P], Coroutine[object, None, R]]: ...
@overload
def transaction(
    *,
    retry: RetryPolicy = ...,
    timeout: timedelta | None = None,
    name: str | None = None,
    key: Callable[..., str] | None = None,
) -> TransactionDecorator: ...
def transaction(
    function: Callable[..., Any] | None = None,
    /,
    *,
    retry: RetryPolicy | None = None,
    timeout: timedelta | None = None,
    name: str | None = None,
    key: Callable[..., str] | None = None,
) -> Any:
    """A step whose SQL and whose journal row commit together: it takes effect exactly once.

    Its first parameter is the ``Transaction``, which callers do not pass. Options as for
    ``activity``.
    """
    return _step(
        function, kind=StepKind.TRANSACTION, retry=retry, timeout=timeout, name=name, key=key
    )


def _step(
    function: Callable[..., Any] | None,
    *,
    kind: StepKind,
    retry: RetryPolicy | None,
    timeout: timedelta | None,
    name: str | None,
    key: Callable[..., str] | None,
    heartbeat_timeout: timedelta | None = None,
) -> Any:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        return step_method(
            StepDefinition(
                function,
                kind=kind,
                name=name,
                retry=retry or RetryPolicy(),
                timeout=timeout,
                heartbeat_timeout=heartbeat_timeout,
                key=key,
            )
        )

    return decorate if function is None else decorate(function)


def step_method(definition: StepDefinition) -> Callable[..., Any]:
    """The method of a class that calls the step."""
    function = definition.function

    @functools.wraps(function)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            body = cast("StepRunner | None", self.__dict__.get(BODY))
        except AttributeError:
            body = None
        if body is None:
            _refuse_unjournaled(definition, self)
            return _direct(function, (self, *args), kwargs)
        return body.run_step(definition, args, kwargs)

    setattr(call, _DEFINITION, definition)
    return call


def _refuse_unjournaled(definition: StepDefinition, holder: object) -> None:
    """A step outside a body is a plain call; inside of one that would run again in each replay."""
    what = definition.function.__qualname__
    if not isinstance(holder, ActivityGroup):
        raise ConfigurationError(
            f"{what} is a step, and a step is a method: define it in the workflow's class, or in"
            " an ActivityGroup that the class inherits from, and call it on self"
        )
    if isinstance(events._get_running_loop(), DeterministicLoop):
        raise ConfigurationError(
            f"{what} is called in a body on an object that is not of this execution, so that it"
            " would not be journaled: call it on self"
        )


async def _direct(
    function: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, object]
) -> Any:
    """A step called outside a body, as in a unit test: a plain call."""
    result = function(*args, **kwargs)
    return await result if inspect.isawaitable(result) else result


class StepRunner(Protocol):
    """The body of an execution, as its steps see it."""

    def run_step(
        self, step: StepDefinition, args: tuple[object, ...], kwargs: dict[str, object], /
    ) -> Coroutine[Any, Any, Any]: ...


def step_of(method: object) -> StepDefinition | None:
    """The definition behind a decorated method, or None."""
    found = getattr(method, _DEFINITION, None)
    return found if isinstance(found, StepDefinition) else None
