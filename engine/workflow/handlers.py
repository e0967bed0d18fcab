"""``@signal``, ``@query`` and ``@update``: mark the methods of a workflow that answer messages.

Read by ``workflow.definition``. A message comes through the execution's inbox (a query by the
post), ``workflow.incoming`` hands it to ``workflow.body``, and the handler runs on the body's loop:
beside ``execute``, and changing places with it only where one of them awaits.
"""

import inspect
from collections.abc import Callable
from enum import Enum
from typing import (
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    overload,
)

from engine.core.codec import Signature
from engine.core.errors import ConfigurationError
from engine.core.names import definition_name

F = TypeVar("F", bound=Callable[..., Any])
V = TypeVar("V", bound=Callable[..., object])
P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
_DEFINITION = "__outlast_handler__"


class HandlerKind(Enum):
    """What becomes of a message."""

    SIGNAL = "signal"
    """It is journaled; nobody waits for an answer."""
    QUERY = "query"
    """It is answered and changes nothing."""
    UPDATE = "update"
    """It is journaled if the validator lets it pass, and answered."""


class HandlerDefinition:
    """One handler of a workflow's class: its name in messages and its function."""

    __slots__ = ("_signature", "function", "kind", "name", "validator")

    def __init__(
        self, function: Callable[..., Any], *, kind: HandlerKind, name: str | None
    ) -> None:
        what = f"{kind.value} {function.__qualname__}"
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise ConfigurationError(f"{what} is a generator; a message has one answer at most")
        if kind is HandlerKind.QUERY and inspect.iscoroutinefunction(function):
            raise ConfigurationError(
                f"{what} is 'async def': a query only looks, so there is nothing it could await;"
                " write 'def', or make it an update"
            )
        self.function: Callable[..., Any] = function
        self.kind: HandlerKind = kind
        self.name: str = definition_name(name or function.__name__, what=what)
        self.validator: Callable[..., object] | None = None
        self._signature: Signature | None = None

    @property
    def signature(self) -> Signature:
        if self._signature is None:
            self._signature = Signature(self.function, what=self.function.__qualname__)
        return self._signature


class HandlerDecorator(Protocol):
    """``@signal(...)`` and ``@query(...)`` with options: keeps the method's shape."""

    def __call__(self, function: F, /) -> F: ...


class UpdateHandler(Generic[P, R_co]):
    """A method marked ``@update``. Called on the workflow itself, it is the plain method."""

    def __init__(self, function: Callable[..., R_co], definition: HandlerDefinition) -> None:
        self.__wrapped__ = function
        self.__name__: str = function.__name__
        self.__qualname__: str = function.__qualname__
        self.__doc__ = function.__doc__
        self.__module__ = function.__module__
        setattr(self, _DEFINITION, definition)

    def __call__(self, instance: Any, /, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return self.__wrapped__(instance, *args, **kwargs)

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type, /) -> Callable[P, R_co]: ...
    def __get__(self, instance: object, owner: type, /) -> Any:
        return self if instance is None else self.__wrapped__.__get__(instance, owner)

    def validator(self, function: V) -> V:
        """Mark the method that refuses an update, by raising, before anything of it is recorded.

        It takes the arguments of the update, is not ``async``, and changes nothing.
        """
        definition = cast("HandlerDefinition", getattr(self, _DEFINITION))
        if inspect.iscoroutinefunction(function):
            raise ConfigurationError(
                f"the validator {function.__qualname__} is 'async def'; it may only look, so"
                " write 'def'"
            )
        definition.validator = function
        return function


class UpdateDecorator(Protocol):
    """``@update(...)`` with options."""

    def __call__(self, function: Callable[Concatenate[Any, P], R], /) -> UpdateHandler[P, R]: ...


@overload
def signal(function: F, /) -> F: ...
@overload
def signal(*, name: str | None = None) -> HandlerDecorator: ...
def signal(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """A message that a run is told: stored, handled in the order it was sent in, not answered.

    The method, ``async`` or not, runs on the body's loop and may use steps. What it raises fails
    the execution. Signals that come before the workflow has begun wait for it; one whose arguments
    do not validate is left out, which its history shows. ``name``: the name in messages and in the
    journal; keep it when you rename the method.
    """
    return _mark(function, HandlerKind.SIGNAL, name)


@overload
def query(function: F, /) -> F: ...
@overload
def query(*, name: str | None = None) -> HandlerDecorator: ...
def query(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """A look into a run: a plain method that returns what it sees and changes nothing.

    It is answered wherever the execution stands, also when it sleeps or has ended; a step, a task
    or a timer in it is an error.
    """
    return _mark(function, HandlerKind.QUERY, name)


@overload
def update(function: Callable[Concatenate[Any, P], R], /) -> UpdateHandler[P, R]: ...
@overload
def update(*, name: str | None = None) -> UpdateDecorator: ...
def update(function: Callable[..., Any] | None = None, /, *, name: str | None = None) -> Any:
    """A message that a run is told and that is answered: once, with what the method returns.

    As ``signal``, but what it raises is its caller's ``RequestFailed`` and nothing else. With
    ``@that_method.validator`` a method may refuse it beforehand (``UpdateRejected``).
    """

    def decorate(function: Callable[..., Any]) -> object:
        definition = HandlerDefinition(function, kind=HandlerKind.UPDATE, name=name)
        return UpdateHandler[Any, Any](function, definition)

    return decorate if function is None else decorate(function)


def _mark(function: Callable[..., Any] | None, kind: HandlerKind, name: str | None) -> Any:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        setattr(function, _DEFINITION, HandlerDefinition(function, kind=kind, name=name))
        return function

    return decorate if function is None else decorate(function)


def handler_of(method: object) -> HandlerDefinition | None:
    """The definition behind a marked method, or None."""
    found = getattr(method, _DEFINITION, None)
    return found if isinstance(found, HandlerDefinition) else None
