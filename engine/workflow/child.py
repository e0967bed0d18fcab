"""Other executions, seen from a body: children it starts, and executions it tells something.

Made by ``workflow.body``. Each is a ``Call``: a stored request that leaves with the body's journal.
"""

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeVar

from engine.core.clock import within
from engine.core.envelope import EnvelopeRequest, ReplyTo, dedup_key
from engine.core.errors import (
    ConfigurationError,
    ErrorDetails,
    ExecutionFailed,
    ExecutionInterrupted,
    ExecutionTerminated,
    NotFound,
)
from engine.core.ids import EntityAddress, EntityId, EntityType, Snowflake, shard_of
from engine.core.journal import Outcome
from engine.core.outcome import ExecutionInfo, Failed, JournalEvent, Pending, Succeeded
from engine.core.reply import Interrupted, Terminated
from engine.storage.protocol import ExecutionStart, SaveRequest
from engine.workflow.deferred import Deferred
from engine.workflow.definition import WorkflowDefinition
from engine.workflow.execution import UNCHANGED, Execution
from engine.workflow.handlers import HandlerKind
from engine.workflow.step import Step
from engine.workflow.tags import (
    INTERRUPT,
    PAUSE,
    RESUME,
    RUN,
    TERMINATE,
    deferred_key,
    encode_text,
    reject_tag,
    resolve_tag,
    signal_tag,
)

if TYPE_CHECKING:
    from engine.workflow.body import Body

T = TypeVar("T")
V = TypeVar("V")
OnParentClose = Literal["interrupt", "abandon"]


class Place:
    """Where an execution lives, by its workflow and id."""

    __slots__ = ("definition", "id")

    def __init__(self, definition: WorkflowDefinition, id: str) -> None:
        self.definition: WorkflowDefinition = definition
        self.id: str = id

    def __str__(self) -> str:
        return f"{self.definition.name}/{self.id}"

    def address(self, shards_in: Callable[[str], int]) -> EntityAddress:
        group, name = self.definition.group, self.definition.name
        shard = shard_of(group, shards_in(group), name, self.id)
        return EntityAddress(shard, EntityType(name), EntityId(self.id))

    @property
    def key(self) -> str:
        """What its run request is deduplicated by."""
        return dedup_key(RUN, self.definition.name, self.id)

    def message(
        self,
        request_id: Snowflake,
        *,
        shards_in: Callable[[str], int],
        tag: str,
        payload: bytes,
        key: str | None = None,
        trace: str | None = None,
    ) -> SaveRequest:
        """Something to tell it."""
        envelope = EnvelopeRequest(
            request_id=request_id,
            address=self.address(shards_in),
            tag=tag,
            payload=payload,
            key=key,
            trace=trace,
        )
        return SaveRequest(envelope=envelope, target=self.key)


class ChildRun:
    """The run of a child, from its start to its exit (a ``Call``).

    ``shared``: its id was given, so that somebody else may have started it. ``abandoned``: it goes
    on when its parent ends.
    """

    __slots__ = ("abandoned", "parent", "place", "shared")
    told = False

    def __init__(self, place: Place, *, parent: Snowflake, shared: bool, abandoned: bool) -> None:
        self.place: Place = place
        self.parent: Snowflake = parent
        self.shared: bool = shared
        self.abandoned: bool = abandoned

    @property
    def name(self) -> str:
        return self.place.definition.name

    @property
    def group(self) -> str:
        return self.place.definition.group

    @property
    def waits(self) -> str:
        return f"child {self.place}"

    def request(
        self,
        request_id: Snowflake,
        *,
        shards_in: Callable[[str], int],
        payload: bytes,
        reply_to: ReplyTo,
        trace: str | None,
    ) -> SaveRequest:
        envelope = EnvelopeRequest(
            request_id=request_id,
            address=self.place.address(shards_in),
            tag=RUN,
            payload=payload,
            key=self.place.key,
            reply_to=reply_to,
            trace=trace,
        )
        start = ExecutionStart(parent=self.parent)
        return SaveRequest(envelope=envelope, execution=start)

    def decode(self, value: bytes) -> object:
        return self.place.definition.result.decode(value)

    def error(self, step: Step, outcome: Outcome, details: ErrorDetails) -> BaseException:
        if outcome is Outcome.INTERRUPTED:
            return ExecutionInterrupted(details.message)
        if outcome is Outcome.TERMINATED:
            return ExecutionTerminated(details.message)
        error = ExecutionFailed(f"{self.place} failed: {details}", details)
        typed = self.place.definition.typed(details)
        if typed is None:
            return error
        typed.__cause__ = error
        return typed


class Message:
    """Something that a body tells another execution (a ``Call``).

    Its answer is whether it came in time. With ``key`` the first of that key is taken only.
    """

    __slots__ = ("key", "place", "tag", "what")
    told = True
    shared = False

    def __init__(self, place: Place, *, what: str, tag: str, key: str | None = None) -> None:
        self.place: Place = place
        self.what: str = what
        self.tag: str = tag
        self.key: str | None = key

    @property
    def name(self) -> str:
        return f"{self.place.definition.name}.{self.what}"

    @property
    def group(self) -> str:
        return self.place.definition.group

    @property
    def waits(self) -> str:
        return f"the delivery of {self.what} to {self.place}"

    def request(
        self,
        request_id: Snowflake,
        *,
        shards_in: Callable[[str], int],
        payload: bytes,
        reply_to: ReplyTo,
        trace: str | None,
    ) -> SaveRequest:
        return self.place.message(
            request_id,
            shards_in=shards_in,
            tag=self.tag,
            payload=payload,
            key=self.key,
            trace=trace,
        )

    def decode(self, value: bytes) -> object:
        return json.loads(value)

    def error(self, step: Step, outcome: Outcome, details: ErrorDetails) -> BaseException:
        return NotFound(f"there is no execution {self.place}")


class BodyExecution(Execution[T]):
    """An execution as another's body sees it: what it is asked and told is a durable step.

    ``step`` is its run, if this body has started it.
    """

    def __init__(
        self, body: "Body", definition: WorkflowDefinition, id: str, step: Step | None = None
    ) -> None:
        super().__init__(definition, id)
        self._body = body
        self._step = step

    @property
    def request_id(self) -> Snowflake:
        raise ConfigurationError(
            f"a body does not know the request id of {self._name}; use its id, which stays the same"
        )

    async def join(self, timeout: timedelta | None = None) -> T:
        step = self._step
        if step is None:
            raise ConfigurationError(
                f"{self._name} was not started by this body, which can only join its children:"
                " join it with a client, in an activity"
            )
        async with within(timeout):
            result: T = await asyncio.shield(step.future)
            return result

    async def interrupt(self, reason: str = "") -> None:
        await self._tell("interrupt", INTERRUPT, encode_text(reason))

    async def terminate(self, reason: str = "") -> None:
        await self._tell("terminate", TERMINATE, encode_text(reason))

    async def pause(self, reason: str = "") -> None:
        await self._tell("pause", PAUSE, encode_text(reason))

    async def resume(self, reason: str = "") -> None:
        await self._tell("resume", RESUME, encode_text(reason))

    async def resolve(self, deferred: Deferred[V], value: V) -> bool:
        name = self._own(deferred)
        payload = deferred.codec.encode(deferred.codec.validate(value))
        return await self._tell(f"resolve {name}", resolve_tag(name), payload, once=name)

    async def reject(self, deferred: Deferred[V], error: str) -> bool:
        name = self._own(deferred)
        return await self._tell(f"reject {name}", reject_tag(name), encode_text(error), once=name)

    async def signal(self, handler: Callable[..., object], /, *args: Any, **kwargs: Any) -> None:
        found = self._handler(handler, HandlerKind.SIGNAL)
        payload = found.signature.validated(args, kwargs)
        if not await self._tell(f"signal {found.name}", signal_tag(found.name), payload):
            raise NotFound(f"{self._name} has ended; it takes no signals any more")

    async def poll(self) -> Pending | Succeeded[T] | Failed | Interrupted | Terminated:
        self._outside("poll")

    async def update(self, handler: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._outside("update")

    async def query(self, handler: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self._outside("query")

    async def describe(self) -> ExecutionInfo:
        self._outside("describe")

    async def history(self) -> list[JournalEvent]:
        self._outside("history")

    async def retry(self) -> None:
        self._outside("retry")

    async def fork(
        self, from_step: str | int, *, key: str, request: object = UNCHANGED
    ) -> Execution[T]:
        self._outside("fork")

    def _outside(self, what: str) -> NoReturn:
        raise ConfigurationError(
            f"{what}() of an execution is not a step: call it with a client, in an activity"
        )

    async def _tell(self, what: str, tag: str, payload: bytes, once: str | None = None) -> bool:
        place = Place(self._definition, self.id)
        key = None if once is None else deferred_key(self._definition.name, self.id, once)
        told: bool = await self._body.tell(Message(place, what=what, tag=tag, key=key), payload)
        return told
