"""``Workflow``: the class people write, and what the engine reads off it."""

import hashlib
import inspect
import json
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import is_dataclass, replace
from datetime import datetime, timedelta
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    NoReturn,
    ParamSpec,
    TypeVar,
    cast,
)
from uuid import UUID

from engine.cluster.entity import Entity
from engine.cluster.handle import entity_handle
from engine.cluster.queue import Debounce, Queue
from engine.cluster.rpc import rpc_of, volatile_step
from engine.core.codec import ValueCodec
from engine.core.composed import composed
from engine.core.errors import ConfigurationError, ErrorDetails, InvalidPayload
from engine.core.generics import types_of
from engine.core.names import definition_name, refuse_hidden, refuse_reserved
from engine.core.status import Status
from engine.workflow.activity import BODY, StepDefinition, step_of
from engine.workflow.activity_group import ActivityGroup
from engine.workflow.deferred import Deferred
from engine.workflow.handlers import HandlerDefinition, handler_of
from engine.workflow.step_context import current_step

if TYPE_CHECKING:
    from engine.workflow.body import Body
    from engine.workflow.execution import Execution

In = TypeVar("In")
Out_co = TypeVar("Out_co", covariant=True)
A = TypeVar("A")
B = TypeVar("B")
E = TypeVar("E", bound=Entity)
P = ParamSpec("P")
_DEFINITION = "__outlast_workflow__"


class Workflow(ActivityGroup, Generic[In, Out_co]):
    """Base class of workflows: ``execute`` is the durable body, its steps are marked methods.

    The object you register is a prototype: each execution gets a shallow copy, so what the body
    assigns to ``self.x`` is the execution's own and is rebuilt by replay; a list or dict that
    ``__init__`` made is shared by all of them. The body may use plain asyncio (gather,
    TaskGroup, timeout, Event, …); time, random numbers and everything outside come through steps
    and the methods below, so that a replay sees the same again.

    >>> import asyncio
    >>> from engine import activity
    >>> from engine.testing import TestCluster
    >>> class Greet(Workflow[str, str]):
    ...     async def execute(self, request: str) -> str:
    ...         await self.sleep(timedelta(days=1))
    ...         return await self.spell(request)
    ...
    ...     @activity
    ...     async def spell(self, name: str) -> str:
    ...         return f"Good morning, {name}"
    >>> async def main() -> str:
    ...     async with TestCluster(Greet()) as cluster:
    ...         execution = await cluster.client.start(Greet, "Ada", key="g-1")
    ...         await cluster.advance(timedelta(days=1))
    ...         return await execution.join()
    >>> asyncio.run(main())
    'Good morning, Ada'
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Of its code. An execution goes on with the version that it began with; a runner may serve
    several: register an object of each class, of one ``name`` and different ``version``."""
    shard_group: ClassVar[str] = "default"
    raises: ClassVar[tuple[type[Exception], ...]] = ()
    """Errors that come back as themselves: from a step to the body, from the execution to its
    joiner. Each is a pydantic dataclass that is an ``Exception``."""
    retention: ClassVar[Mapping[Status, timedelta | None]] = {}
    """How long executions are kept after they have ended so; None: for ever. What is not named here
    is kept as the settings ``retention`` and ``retention_failed`` say."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_reserved(
            cls, Workflow, reserved=_RESERVED, options=_OPTIONS, overridable=_OVERRIDABLE
        )
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        definition_name(cls.name, what=f"workflow {cls.__qualname__}")
        version = cast("object", cls.version)
        if not isinstance(version, int) or not 0 < version < 1 << 31:
            raise ConfigurationError(
                f"{cls.__qualname__}.version is {version!r}; number versions from 1 on"
            )

    @classmethod
    def key(cls, request: In) -> str:
        """The id of the execution for a request: one key, one execution. Default: a digest."""
        return hashlib.blake2b(
            definition_of(cls).request.encode(request), digest_size=16
        ).hexdigest()

    async def execute(self, request: In) -> Out_co:
        """The body. Override it."""
        raise NotImplementedError(f"{type(self).__name__} does not define execute()")

    @property
    def execution_id(self) -> str:
        """The id of this execution: the key it was started under."""
        step = current_step.get()
        return step.execution_id if step is not None else self._body("execution_id").execution_id

    @property
    def suspending(self) -> bool:
        """True in ``finally`` blocks that run because the body leaves memory, not as it ends."""
        return self._body("suspending").suspending

    def sleep(self, duration: timedelta) -> Coroutine[object, None, None]:
        """Sleep durably; the same as ``asyncio.sleep`` here."""
        body = self._body("sleep()")
        return body.awaited("sleep()", lambda: body.sleep(duration))

    def sleep_until(self, when: datetime) -> Coroutine[object, None, None]:
        """Sleep durably until a time (aware)."""
        body = self._body("sleep_until()")
        return body.awaited("sleep_until()", lambda: body.sleep_until(when))

    def now(self) -> datetime:
        """The execution's clock, in UTC: the time of the last event it saw, the same on replay."""
        return self._body("now()").now()

    def random(self) -> random.Random:
        """A generator that draws the same numbers on replay."""
        return self._body("random()").random

    def uuid(self) -> UUID:
        """A random UUID that is the same on replay."""
        return self._body("uuid()").uuid()

    def entity(self, entity: type[E], id: str) -> E:
        """A handle on an entity; its calls are durable steps of this execution."""
        return entity_handle(entity, id, self._body("entity()").call_entity)

    def run_child(
        self, workflow: "type[Workflow[A, B]]", request: A, *, key: str | None = None
    ) -> Coroutine[object, None, B]:
        """Run another workflow as a child, as one durable step, and give its result.

        Its id is ``key``, or what its class's own ``key`` says; without either, each call has a
        child of its own. A child of that id that exists already is joined instead. Raises
        ``ExecutionFailed``, ``ExecutionInterrupted`` or ``ExecutionTerminated`` as it ended. When
        the wait is cancelled or this execution ends first, the child is interrupted.
        """
        return self._body("run_child()").run_child(workflow, request, key)

    def start_child(
        self,
        workflow: "type[Workflow[A, B]]",
        request: A,
        *,
        key: str | None = None,
        on_parent_close: Literal["interrupt", "abandon"] = "interrupt",
    ) -> "Coroutine[object, None, Execution[B]]":
        """Start a child and go on beside it; ``join`` the handle for its result.

        Ids as for ``run_child``. When this execution ends while the child runs, the child is
        interrupted, or with ``"abandon"`` left alone; so is it by ``continue_as_new``.
        """
        return self._body("start_child()").start_child(workflow, request, key, on_parent_close)

    def submit(
        self,
        queue: type[Queue[A, B]],
        item: A,
        *,
        id: str | None = None,
        key: str | None = None,
        priority: int | None = None,
        at: datetime | None = None,
        delay: timedelta | None = None,
        debounce: Debounce | None = None,
    ) -> Coroutine[object, None, B]:
        """Put an item into a queue and wait for its result, as one durable step.

        Options as for ``client.submit``. Raises ``StepFailed`` when processing it failed, and when
        it was cancelled or a later item has taken its place. When the wait is cancelled or this
        execution ends, the item is processed all the same.
        """
        return self._body("submit()").submit(
            queue,
            item,
            id=id,
            key=key,
            priority=priority,
            at=at,
            delay=delay,
            debounce=debounce,
        )

    def execution(self, workflow: "type[Workflow[A, B]]", id: str) -> "Execution[B]":
        """A handle on any execution, to tell it something; what it is told is a durable step."""
        return self._body("execution()").execution(workflow, id)

    def wait_until(
        self, condition: Callable[[], bool], timeout: timedelta | None = None
    ) -> Coroutine[object, None, bool]:
        """Wait until a condition on this object's own state is true; False after ``timeout``.

        It is looked at whenever a step, a timer or a message has changed something, so it must be
        cheap and only look.
        """
        body = self._body("wait_until()")
        return body.awaited("wait_until()", lambda: body.wait_until(condition, timeout))

    def continue_as_new(self, request: In) -> Coroutine[object, None, NoReturn]:
        """End this run and begin another of the same execution, with an empty journal.

        For what goes on for ever, from ``execute`` itself. Handlers that run are awaited first;
        messages not handled yet go to the new run, and what was resolved stays resolved. The new
        run is of the highest version that its runner serves.
        Compensations registered in this run are dropped, since it has done what it was for: a
        later run that fails undoes its own work alone. What is to be undone even then goes into
        ``request``, and is registered anew. ``join`` waits for the last run's result.
        """
        body = self._body("continue_as_new()")
        return body.awaited("continue_as_new()", lambda: body.continue_as_new(request))

    def patched(self, change: str) -> bool:
        """Whether this run takes the new way past a change of its code.

        False if the run had got here before the change came, and then for all of the run; else
        true. What is asked for the first time is journaled, so that the answer to one ``change``
        stays the same in loops, in tasks side by side, and after later changes. A run that
        continues as new asks anew. One of which nothing had been stored begins anew, too.

        Remove the call and the old way once ``client.patches()`` (``outlast patches``) shows that
        nobody needs that any more. A query may ask what has been answered.
        """
        return self._body("patched()").patched(change)

    def deprecate_patch(self, change: str) -> None:
        """Say in the place of ``patched`` that the code has only the new way left.

        A run that was told to take the old one is blocked here, before it goes wrong, and goes on
        where the old way is still there. Others go on, also under code that still asks.
        """
        self._body("deprecate_patch()").deprecate_patch(change)

    def compensate(
        self, undo: Callable[P, Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Run ``undo`` if this execution fails or is interrupted, last registered first."""
        body, rpc = self._body("compensate()"), rpc_of(undo)
        if rpc is not None and not rpc.persisted:
            raise volatile_step(rpc.function.__qualname__)
        body.compensate(lambda: undo(*args, **kwargs))

    def set_attributes(self, attributes: Mapping[str, object]) -> None:
        """Change what the execution can be found by: plain JSON values by name, on top of those it
        has, also of earlier runs; None takes a name away. Stored with what it does next.
        ``InvalidPayload`` for a value that is no JSON.

        >>> import asyncio
        >>> from engine.testing import TestCluster
        >>> class Ship(Workflow[str, None]):
        ...     async def execute(self, request: str) -> None:
        ...         self.set_attributes({"stage": "packing", "carrier": request})
        ...         await self.sleep(timedelta(days=1))
        >>> async def main() -> list[str]:
        ...     async with TestCluster(Ship()) as cluster:
        ...         await cluster.client.start(Ship, "pigeon", key="s-1")
        ...         await cluster.advance(timedelta(hours=1))
        ...         wanted = {"carrier": "pigeon"}
        ...         return [each.id async for each in cluster.client.executions(attributes=wanted)]
        >>> asyncio.run(main())
        ['s-1']
        """
        self._body("set_attributes()").set_attributes(attributes)

    def _body(self, what: str) -> "Body":
        body = cast("Body | None", self.__dict__.get(BODY))
        if body is None:
            raise ConfigurationError(
                f"{type(self).__name__}.{what} exists in the workflow's body only: call it on self"
                " in execute(); what a step needs of it goes to the step as an argument"
            )
        return body


_OPTIONS = frozenset({"name", "version", "shard_group", "raises", "retention"})
_OVERRIDABLE = frozenset({"key", "execute"})
_RESERVED = (
    frozenset(
        name for name in {**vars(ActivityGroup), **vars(Workflow)} if not name.startswith("__")
    )
    - _OPTIONS
    - _OVERRIDABLE
)


class WorkflowDefinition:
    """What the engine reads off a workflow class, once."""

    __slots__ = (
        "cls",
        "deferreds",
        "errors",
        "group",
        "handlers",
        "has_key",
        "name",
        "request",
        "result",
        "retention",
        "steps",
        "version",
    )

    def __init__(self, cls: type[Workflow[Any, Any]]) -> None:
        self.cls: type[Workflow[Any, Any]] = cls
        self.name: str = cls.name
        self.version: int = cls.version
        self.group: str = cls.shard_group
        self.retention: Mapping[Status, timedelta | None] = _retention(cls)
        if not isinstance(inspect.getattr_static(cls, "key"), classmethod):
            raise ConfigurationError(f"{cls.name}.key() must be a classmethod: write @classmethod")
        self.has_key: bool = cls.key.__func__ is not Workflow.key.__func__  # type: ignore[attr-defined]
        request, result = types_of(cls, Workflow, "execute")
        self.request: ValueCodec[Any] = ValueCodec(request, what=f"the request of {cls.name}")
        self.result: ValueCodec[Any] = ValueCodec(result, what=f"the result of {cls.name}")
        self.errors: dict[str, ValueCodec[Exception]] = {
            each.__qualname__: _error_codec(cls, each) for each in cls.raises
        }
        self.steps: dict[str, StepDefinition] = composed(
            cls, step_of, what="step", mark="@activity or @transaction"
        )
        self.handlers: dict[str, HandlerDefinition] = composed(
            cls, handler_of, what="handler", mark="@signal, @query or @update"
        )
        self.deferreds: dict[str, Deferred[Any]] = {}
        for attribute in dir(cls):
            value: object = getattr(cls, attribute, None)
            step = step_of(value)
            if rpc_of(value) is not None or (step is not None and attribute in _OVERRIDABLE):
                raise ConfigurationError(
                    f"{cls.__qualname__}.{attribute} cannot be a step or handler;"
                    " steps are methods of another name marked @activity or @transaction, and"
                    " handlers marked @rpc belong to an Entity"
                )
            if isinstance(value, Deferred):
                self.deferreds[attribute] = value  # pyright: ignore[reportUnknownMemberType]

    def details_of(self, error: BaseException) -> ErrorDetails:
        """An error as it is stored, with the fields of one that the class says it raises."""
        details = ErrorDetails.of(error)
        codec = self.errors.get(details.type)
        if codec is None or not isinstance(error, Exception):
            return details
        try:
            return replace(details, details=json.loads(codec.encode(error)))
        except InvalidPayload:
            return details

    def typed(self, details: ErrorDetails) -> Exception | None:
        """The error itself, if the class says that it raises it."""
        codec = self.errors.get(details.type)
        if codec is None:
            return None
        try:
            return codec.decode(json.dumps(details.details).encode())
        except InvalidPayload:
            return None

    def check(self, prototype: Workflow[Any, Any] | None = None) -> None:
        """Build every codec now: a type that cannot be stored is refused at registration."""
        if prototype is not None:
            refuse_hidden(prototype, Workflow, reserved=_RESERVED)
        for step in self.steps.values():
            _ = step.signature
        for handler in self.handlers.values():
            _ = handler.signature
        for deferred in self.deferreds.values():
            _ = deferred.codec
        if self.cls.execute is Workflow.execute:  # pyright: ignore[reportUnknownMemberType]
            raise ConfigurationError(
                f"{self.cls.__qualname__} has no body: write 'async def execute(self, request)'"
            )


def _error_codec(cls: type[Workflow[Any, Any]], error: type[Exception]) -> ValueCodec[Exception]:
    if not is_dataclass(error):
        raise ConfigurationError(
            f"{cls.__qualname__}.raises names {error.__qualname__}, which has no fields that could"
            " be stored: make it a dataclass, as in '@pydantic.dataclasses.dataclass'"
        )
    return ValueCodec(error, what=f"the error {error.__qualname__}")


def definition_of(cls: type[Workflow[Any, Any]]) -> WorkflowDefinition:
    """The definition of a workflow class, made on first use and kept on the class."""
    if not _is_workflow(cls):
        raise ConfigurationError(
            f"{cls!r} is not a Workflow class; pass the class, defined as class X(Workflow)"
        )
    found = vars(cls).get(_DEFINITION)
    if not isinstance(found, WorkflowDefinition):
        found = WorkflowDefinition(cls)
        setattr(cls, _DEFINITION, found)
    return found


def _is_workflow(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Workflow) and cls is not Workflow


def _retention(cls: type[Workflow[Any, Any]]) -> Mapping[Status, timedelta | None]:
    for status, kept in cls.retention.items():
        if not status.finished:
            raise ConfigurationError(
                f"{cls.__name__}.retention names {status}, and what is that has not ended: name"
                " SUCCEEDED, FAILED, INTERRUPTED or TERMINATED"
            )
        if kept is not None and kept < timedelta(0):
            raise ConfigurationError(f"{cls.__name__}.retention of {status} is less than nothing")
    return dict(cls.retention)
