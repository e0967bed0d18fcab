"""A handle on one execution from outside: every call goes to the database, or to its owner.

Made by ``client``. What it is told goes through ``by_name`` into the execution's inbox.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from engine import admin, by_name, repair
from engine.cluster.replies import GONE
from engine.core.clock import within
from engine.core.envelope import dedup_key
from engine.core.errors import (
    ConfigurationError,
    EngineError,
    ErrorDetails,
    InvalidPayload,
    NotFound,
    NotRegistered,
    RequestFailed,
    UpdateRejected,
)
from engine.core.ids import Snowflake
from engine.core.outcome import ExecutionInfo, Failed, JournalEvent, Pending, Succeeded
from engine.core.reply import Defect, Exit, Failure, Interrupted, Success, Terminated
from engine.history import history_of
from engine.workflow.deferred import Deferred
from engine.workflow.definition import WorkflowDefinition
from engine.workflow.execution import UNCHANGED, Execution
from engine.workflow.handlers import HandlerKind
from engine.workflow.tags import (
    INTERRUPT,
    PAUSE,
    RESUME,
    TERMINATE,
    deferred_key,
    encode_order,
    encode_text,
    query_tag,
    reject_tag,
    resolve_tag,
    signal_tag,
    update_tag,
)

if TYPE_CHECKING:
    from engine.node import Node

T = TypeVar("T")
V = TypeVar("V")


class ClientExecution(Execution[T]):
    """Made by ``client.start`` and ``client.execution``, which asks nothing of the database."""

    def __init__(
        self,
        node: "Node",
        definition: WorkflowDefinition,
        id: str,
        request_id: Snowflake | None = None,
        key: str | None = None,
    ) -> None:
        super().__init__(definition, id)
        self._node = node
        self._request_id = request_id
        self._key = key

    @property
    def request_id(self) -> Snowflake:
        if self._request_id is None:
            raise ConfigurationError(
                f"{self!r} has not been looked up yet; await its describe() or poll() first"
            )
        return self._request_id

    async def poll(self) -> Pending | Succeeded[T] | Failed | Interrupted | Terminated:
        found = await admin.find(self._node.storage, self._definition.name, self.id)
        self._request_id = found.request_id
        match await admin.exit_of(self._node.storage, found.request_id):
            case None:
                return Pending(found.status)
            case Success(value):
                return Succeeded(self._definition.result.decode(value))
            case Failure(error) | Defect(error):
                return Failed(error)
            case ended:
                return ended

    async def join(self, timeout: timedelta | None = None) -> T:
        limit = within(timeout)
        try:
            async with limit:
                request_id = await self._find()
                return self.result_of(await self._exit(request_id))
        except TimeoutError as error:
            if limit.expired() and not error.args:
                name = f"{self._definition.name}/{self.id}"
                why = f"'outlast why {name}' says what it waits for"
                error.args = (f"{name} goes on, but has not ended within {timeout}: {why}",)
            raise

    async def interrupt(self, reason: str = "") -> None:
        await self._order(INTERRUPT, reason)

    async def terminate(self, reason: str = "") -> None:
        await self._order(TERMINATE, reason)

    async def pause(self, reason: str = "") -> None:
        await self._order(PAUSE, reason)

    async def resume(self, reason: str = "") -> None:
        await self._order(RESUME, reason)

    async def retry(self) -> None:
        found = await admin.find(self._node.storage, self._definition.name, self.id)
        await repair.retry(self._node, found)

    async def fork(
        self, from_step: str | int, *, key: str, request: object = UNCHANGED
    ) -> Execution[T]:
        found = await admin.find(self._node.storage, self._definition.name, self.id)
        codec, payload = self._definition.request, None
        if request is not UNCHANGED:
            payload = codec.encode(codec.validate(request))
        request_id = await repair.fork(self._node, found, from_step, key=key, request=payload)
        return ClientExecution(self._node, self._definition, key, request_id)

    async def resolve(self, deferred: Deferred[V], value: V) -> bool:
        name = self._own(deferred)
        payload = deferred.codec.encode(deferred.codec.validate(value))
        return await self._tell(resolve_tag(name), payload, once=name)

    async def reject(self, deferred: Deferred[V], error: str) -> bool:
        name = self._own(deferred)
        return await self._tell(reject_tag(name), encode_text(error), once=name)

    async def signal(self, handler: Callable[..., object], /, *args: Any, **kwargs: Any) -> None:
        await by_name.signal(self._node, self.signal_message(handler, args, kwargs))

    async def update(self, handler: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        message = self.update_message(handler, args, kwargs)
        return self.answer_of(handler, await by_name.ask(self._node, message))

    async def query(self, handler: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        found = self._handler(handler, HandlerKind.QUERY)
        payload = found.signature.validated(args, kwargs)
        exit = await by_name.query(self._node, self._target(query_tag(found.name), payload))
        return _answer(found.name, found.signature.result.decode, exit)

    async def describe(self) -> ExecutionInfo:
        found = await admin.find(self._node.storage, self._definition.name, self.id)
        self._request_id = found.request_id
        silent_before = self._node.clock.now() - self._node.settings.time_to_live
        return await admin.describe(self._node.storage, found, silent_before=silent_before)

    async def history(self) -> list[JournalEvent]:
        return await history_of(self._node.storage, await self._find())

    def signal_message(
        self, handler: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> by_name.Message:
        """What a signal stores."""
        found = self._handler(handler, HandlerKind.SIGNAL)
        return self._target(signal_tag(found.name), found.signature.validated(args, kwargs))

    def update_message(
        self, handler: Callable[..., object], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> by_name.Message:
        """What an update stores."""
        found = self._handler(handler, HandlerKind.UPDATE)
        return self._target(update_tag(found.name), found.signature.validated(args, kwargs))

    def answer_of(self, handler: Callable[..., object], exit: Exit) -> Any:
        """The answer of an update, or its error raised."""
        found = self._handler(handler, HandlerKind.UPDATE)
        return _answer(found.name, found.signature.result.decode, exit)

    async def _exit(self, request_id: Snowflake) -> Exit:
        """Its exit, when there is one; ``NotFound`` when it was pruned, for which it had to end."""
        try:
            return await self._node.replies.wait(request_id)
        except NotFound:
            raise NotFound(f"{self._name} is not stored: {GONE}") from None

    async def _find(self) -> Snowflake:
        if self._request_id is None:
            found = await admin.find(self._node.storage, self._definition.name, self.id)
            self._request_id = found.request_id
        return self._request_id

    def _target(self, tag: str, payload: bytes, once: str | None = None) -> by_name.Message:
        name = self._definition.name
        key = None
        if once is not None:
            key = deferred_key(name, self.id, once)
        elif self._key is not None:
            key = dedup_key("message", name, f"{len(self.id)}.{self.id}/{tag}/{self._key}")
        return by_name.Message(
            workflow=name,
            group=self._definition.group,
            id=self.id,
            tag=tag,
            payload=payload,
            key=key,
        )

    async def _order(self, tag: str, reason: str) -> None:
        await self._tell(tag, encode_order(reason, self._node.settings.author))

    async def _tell(self, tag: str, payload: bytes, *, once: str | None = None) -> bool:
        return await by_name.tell(self._node, self._target(tag, payload, once))


def _answer(name: str, decode: Callable[[bytes], Any], exit: Exit) -> Any:
    match exit:
        case Success(value):
            return decode(value)
        case Failure(error) | Defect(error):
            if (ours := _OURS.get(error.type)) is not None:
                raise ours(error.message)
            raise RequestFailed(f"{name} failed: {error}", error)
        case Interrupted(reason) | Terminated(reason):
            error = ErrorDetails(type(exit).__name__, reason)
            raise RequestFailed(f"{name} failed: {error}", error)


_OURS: dict[str, type[EngineError]] = {
    each.__name__: each for each in (InvalidPayload, NotFound, NotRegistered, UpdateRejected)
}
"""What the engine itself answers, by the name it is stored under."""
