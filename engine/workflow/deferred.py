"""``Deferred``: a value that an execution waits for and somebody outside provides, once."""

from __future__ import annotations

import typing
from collections.abc import Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, TypeVar, overload

from engine.core.codec import ValueCodec
from engine.core.errors import ConfigurationError
from engine.core.names import definition_name

if TYPE_CHECKING:
    from engine.workflow.body import Body
    from engine.workflow.definition import Workflow

T = TypeVar("T")


class Deferred(Generic[T]):
    """Declare it on the workflow's class, ``wait`` for it in the body, resolve it from anywhere.

    ``approved = Deferred(bool)``; for a union write ``Deferred[int | None]()``. The first
    resolution (or rejection) wins, whether the body waits already or not yet.

    >>> import asyncio
    >>> from engine import Workflow
    >>> from engine.testing import TestCluster
    >>> class Ask(Workflow[str, bool]):
    ...     approved = Deferred(bool)
    ...
    ...     async def execute(self, request: str) -> bool:
    ...         return await self.approved.wait(timeout=timedelta(days=2))
    >>> async def main() -> bool:
    ...     async with TestCluster(Ask()) as cluster:
    ...         execution = await cluster.client.start(Ask, "holiday")
    ...         await execution.resolve(Ask.approved, True)
    ...         return await execution.join()
    >>> asyncio.run(main())
    True
    """

    def __init__(self, type: type[T] | None = None) -> None:
        self._type: Any = type
        self._codec: ValueCodec[T] | None = None
        self.name: str = ""
        self.owner: str = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = definition_name(name, what=f"deferred {owner.__qualname__}.{name}")
        self.owner = owner.__qualname__

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: Workflow[Any, Any], owner: type) -> BoundDeferred[T]: ...
    def __get__(self, instance: Workflow[Any, Any] | None, owner: type) -> Self | BoundDeferred[T]:
        return self if instance is None else BoundDeferred(self, instance)

    @property
    def codec(self) -> ValueCodec[T]:
        if self._codec is None:
            annotation = self._type
            if annotation is None:
                arguments = typing.get_args(getattr(self, "__orig_class__", None))
                if not arguments:
                    raise ConfigurationError(
                        f"{self.owner}.{self.name} says no type; write Deferred(bool),"
                        " or Deferred[int | None]() for a union"
                    )
                annotation = arguments[0]
            self._codec = ValueCodec(annotation, what=f"deferred {self.owner}.{self.name}")
        return self._codec


class BoundDeferred(Generic[T]):
    """A deferred of one execution, inside its body."""

    __slots__ = ("_deferred", "_workflow")

    def __init__(self, deferred: Deferred[T], workflow: Workflow[Any, Any]) -> None:
        self._deferred = deferred
        self._workflow = workflow

    def wait(self, timeout: timedelta | None = None) -> Coroutine[object, None, T]:
        """The value, once there is one; ``TimeoutError`` after ``timeout`` (a durable timer).

        A rejection raises ``StepFailed``. Waiting again gives the same value again.
        """
        what = f"{self._deferred.name}.wait()"
        body = self._workflow._body(what)  # pyright: ignore[reportPrivateUsage]
        return body.awaited(what, lambda: self._value(body, timeout))

    async def _value(self, body: Body, timeout: timedelta | None) -> T:
        payload = await body.wait_deferred(self._deferred.name, timeout)
        return self._deferred.codec.decode(payload)

    def __await__(self) -> NoReturn:
        name = self._deferred.name
        raise ConfigurationError(
            f"a deferred is awaited by its wait(): write await self.{name}.wait()"
        )

    def token(self) -> str:
        """A text to hand to whoever shall resolve it: ``Workflow/execution-id#deferred``."""
        workflow = self._workflow
        return f"{workflow.name}/{workflow.execution_id}#{self._deferred.name}"
