"""``@rpc``: marks the methods of an entity that can be called from outside, as messages.

Read by ``cluster.entity`` (to handle them) and by ``cluster.handle`` (to send them).
"""

import functools
import inspect
import sys
from collections.abc import AsyncIterable, Callable, Coroutine
from typing import Any, Protocol, TypeVar, cast, overload

from engine.core.codec import Signature
from engine.core.envelope import Uninterruptible
from engine.core.errors import ConfigurationError
from engine.core.names import definition_name

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any] | AsyncIterable[Any]])

HANDLE = "_outlast_handle"
_DEFINITION = "__outlast_rpc__"


class RpcDefinition:
    """One handler: its name on the wire (the tag), its function and its options.

    ``stream``: it is an async generator, and ``signature.result`` is the codec of its elements.
    """

    __slots__ = (
        "_signature",
        "function",
        "key",
        "name",
        "persisted",
        "readonly",
        "resumable",
        "stream",
        "uninterruptible",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None,
        persisted: bool,
        uninterruptible: Uninterruptible,
        key: Callable[..., str] | None,
        readonly: bool = False,
        resumable: bool = False,
    ) -> None:
        what = f"handler {function.__qualname__}"
        stream = inspect.isasyncgenfunction(function)
        if not stream and not inspect.iscoroutinefunction(function):
            raise ConfigurationError(
                f"{what} must be 'async def' and return its answer, or yield its elements"
            )
        if resumable and not (stream and persisted):
            raise ConfigurationError(
                f"{what} cannot be resumable: only a persisted stream (an async generator) goes on"
                " where it stopped; take resumable=True off it"
            )
        if key is not None and not persisted:
            raise ConfigurationError(
                f"{what} is volatile (persisted=False): nothing remembers what was sent before, so"
                " it cannot be deduplicated; take key= off it, or make it persisted"
            )
        self.function: Callable[..., Any] = function
        self.name: str = definition_name(name or function.__name__, what=what)
        self.persisted: bool = persisted
        self.uninterruptible: Uninterruptible = uninterruptible
        self.key: Callable[..., str] | None = key
        self.readonly: bool = readonly
        self.resumable: bool = resumable
        self.stream: bool = stream
        self._signature: Signature | None = None

    @property
    def signature(self) -> Signature:
        if self._signature is None:
            self._signature = Signature(self.function, what=self.function.__qualname__)
        return self._signature


class RpcHandle(Protocol):
    """What stands behind an entity handle: it sends the call instead of running it."""

    def call(
        self, rpc: RpcDefinition, args: tuple[object, ...], kwargs: dict[str, object], /
    ) -> Coroutine[Any, Any, Any] | AsyncIterable[Any]: ...


class RpcDecorator(Protocol):
    """``@rpc(...)`` with options: keeps the method's shape."""

    def __call__(self, function: F, /) -> F: ...


@overload
def rpc(function: F, /) -> F: ...
@overload
def rpc(
    *,
    name: str | None = None,
    persisted: bool = True,
    uninterruptible: Uninterruptible = Uninterruptible.NO,
    key: Callable[..., str] | None = None,
    readonly: bool = False,
    resumable: bool = False,
) -> RpcDecorator: ...
def rpc(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    persisted: bool = True,
    uninterruptible: Uninterruptible = Uninterruptible.NO,
    key: Callable[..., str] | None = None,
    readonly: bool = False,
    resumable: bool = False,
) -> Any:
    """Make a method callable from outside, as a message that is stored before it is delivered.

    ``name``: the tag stored with it (default: the method's name); keep it when you rename the
    method. ``key``: computes a deduplication key from the call's arguments: calls with one key run
    once and share the reply. ``persisted=False``: a volatile message, delivered at most once and
    never stored; its caller gets ``MailboxFull`` at once when the entity has no room for it, and
    ``RequestFailed`` (of type ``RunnerLost``) when its runner is lost. ``uninterruptible``: whose
    interrupts it ignores. ``readonly``: it does not change the entity's ``State``, and runs beside
    others. On the entity itself the method stays a plain method.

    An async generator is a stream: its caller iterates over it. What it yields is stored until it
    is taken, and at most a window ahead of the caller. When its runner dies it starts again from
    the beginning, and what is stored already is skipped; with ``resumable=True`` it goes on by
    itself from ``self.next_sequence``.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        definition = RpcDefinition(
            function,
            name=name,
            persisted=persisted,
            uninterruptible=uninterruptible,
            key=key,
            readonly=readonly,
            resumable=resumable,
        )

        @functools.wraps(function)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            handle = cast("RpcHandle | None", self.__dict__.get(HANDLE))
            if handle is None:
                return function(self, *args, **kwargs)
            return handle.call(definition, args, kwargs)

        setattr(call, _DEFINITION, definition)
        if sys.version_info >= (3, 12) and not definition.stream:
            inspect.markcoroutinefunction(call)
        return call

    return decorate if function is None else decorate(function)


def volatile_step(name: str) -> ConfigurationError:
    """Why a workflow's body may not call a volatile handler."""
    return ConfigurationError(
        f"{name} is volatile (persisted=False), and a step of a workflow needs a stored reply; call"
        " it in an activity, or make the handler persisted"
    )


def rpc_of(method: object) -> RpcDefinition | None:
    """The definition behind a decorated method, or None."""
    found = getattr(method, _DEFINITION, None)
    return found if isinstance(found, RpcDefinition) else None
