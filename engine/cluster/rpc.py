"""``@rpc``: marks the methods of an entity that can be called from outside, as messages.

Read by ``cluster.entity`` (to handle them) and by ``cluster.handle`` (to send them).
"""

import functools
import inspect
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Protocol, TypeVar, cast, overload

from engine.core.codec import Signature
from engine.core.envelope import Uninterruptible
from engine.core.errors import ConfigurationError
from engine.core.names import definition_name

F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])

HANDLE = "_outlast_handle"
_DEFINITION = "__outlast_rpc__"


class RpcDefinition:
    """One handler: its name on the wire (the tag), its function and its options."""

    __slots__ = ("_signature", "function", "key", "name", "persisted", "uninterruptible")

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        name: str | None,
        persisted: bool,
        uninterruptible: Uninterruptible,
        key: Callable[..., str] | None,
    ) -> None:
        what = f"handler {function.__qualname__}"
        if inspect.isasyncgenfunction(function) or not inspect.iscoroutinefunction(function):
            raise ConfigurationError(f"{what} must be 'async def' and return its answer")
        self.function: Callable[..., Any] = function
        self.name: str = definition_name(name or function.__name__, what=what)
        self.persisted: bool = persisted
        self.uninterruptible: Uninterruptible = uninterruptible
        self.key: Callable[..., str] | None = key
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
    ) -> Coroutine[Any, Any, Any]: ...


class RpcDecorator(Protocol):
    """``@rpc(...)`` with options: keeps the method's shape."""

    def __call__(self, function: F, /) -> F: ...


@overload
def rpc(function: F, /) -> F: ...
@overload
def rpc(
    *,
    name: str | None = None,
    uninterruptible: Uninterruptible = Uninterruptible.NO,
    key: Callable[..., str] | None = None,
) -> RpcDecorator: ...
def rpc(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    uninterruptible: Uninterruptible = Uninterruptible.NO,
    key: Callable[..., str] | None = None,
) -> Any:
    """Make a method callable from outside, as a message that is stored before it is delivered.

    ``name``: the tag stored with it (default: the method's name); keep it when you rename the
    method. ``key``: computes a deduplication key from the call's arguments: calls with one key run
    once and share the reply. On the entity itself the method stays a plain method.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        definition = RpcDefinition(
            function, name=name, persisted=True, uninterruptible=uninterruptible, key=key
        )

        @functools.wraps(function)
        def call(self: Any, *args: Any, **kwargs: Any) -> Any:
            handle = cast("RpcHandle | None", self.__dict__.get(HANDLE))
            if handle is None:
                return function(self, *args, **kwargs)
            return handle.call(definition, args, kwargs)

        setattr(call, _DEFINITION, definition)
        if sys.version_info >= (3, 12):
            inspect.markcoroutinefunction(call)
        return call

    return decorate if function is None else decorate(function)


def rpc_of(method: object) -> RpcDefinition | None:
    """The definition behind a decorated method, or None."""
    found = getattr(method, _DEFINITION, None)
    return found if isinstance(found, RpcDefinition) else None
