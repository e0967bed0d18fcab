"""A handle on one execution: poll it, join it, resolve what it waits for, look into it."""

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from engine import admin, by_name
from engine.core.errors import (
    ConfigurationError,
    ExecutionFailed,
    ExecutionInterrupted,
    ExecutionTerminated,
    NotFound,
)
from engine.core.ids import Snowflake
from engine.core.reply import (
    Defect,
    Exit,
    Failure,
    Interrupted,
    Success,
    Terminated,
)
from engine.outcome import ExecutionInfo, Failed, JournalEvent, Pending, Succeeded
from engine.workflow.deferred import Deferred
from engine.workflow.definition import WorkflowDefinition
from engine.workflow.tags import INTERRUPT, RETRY, encode_text, reject_tag, resolve_tag

if TYPE_CHECKING:
    from engine.node import Node

T = TypeVar("T")
V = TypeVar("V")


class Execution(Generic[T]):
    """Made by ``client.start`` and ``client.execution``, which asks nothing of the database."""

    def __init__(
        self,
        node: "Node",
        definition: WorkflowDefinition,
        id: str,
        request_id: Snowflake | None = None,
    ) -> None:
        self.id = id
        self._node = node
        self._definition = definition
        self._request_id = request_id

    def __repr__(self) -> str:
        return f"Execution({self._definition.name}/{self.id})"

    @property
    def request_id(self) -> Snowflake:
        """The id of its run request; known once it was started or looked up through this handle."""
        if self._request_id is None:
            raise ConfigurationError(
                f"{self!r} has not been looked up yet; await its describe() or poll() first"
            )
        return self._request_id

    async def poll(self) -> Pending | Succeeded[T] | Failed | Interrupted | Terminated:
        """What has become of it, now. ``NotFound`` when there is no such execution."""
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
        """Its result, once it has one. Any number of callers, in any process, at any time.

        Raises ``ExecutionFailed``, ``ExecutionInterrupted``, ``ExecutionTerminated``, ``NotFound``,
        and ``TimeoutError`` after ``timeout`` (the execution goes on).
        """
        async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
            request_id = await self._find()
            return self.result_of(await self._node.replies.wait(request_id))

    async def interrupt(self, reason: str = "") -> None:
        """Ask it to end early: its body is cancelled and its cleanup runs. No-op once it ended."""
        await self._tell(INTERRUPT, encode_text(reason))

    async def retry(self) -> None:
        """Let it go on although it is blocked: what it failed by is forgotten, and it runs from
        where its journal ends. No-op when it is not blocked; ``NotFound`` when it has ended."""
        if not await self._tell(RETRY, encode_text("")):
            raise NotFound(f"{self._definition.name}/{self.id} has ended; start another")

    async def resolve(self, deferred: Deferred[V], value: V) -> bool:
        """Give the value it waits for, or will. True for the first; False when it was resolved or
        rejected before, or has ended."""
        name = self._own(deferred)
        payload = deferred.codec.encode(deferred.codec.validate(value))
        return await self._tell(resolve_tag(name), payload, once=name)

    async def reject(self, deferred: Deferred[V], error: str) -> bool:
        """Let the wait for it fail with ``StepFailed``. True and False as for ``resolve``."""
        name = self._own(deferred)
        return await self._tell(reject_tag(name), encode_text(error), once=name)

    async def describe(self) -> ExecutionInfo:
        """Status, times, owner, and why it does not go on."""
        found = await admin.find(self._node.storage, self._definition.name, self.id)
        self._request_id = found.request_id
        silent_before = self._node.clock.now() - self._node.settings.time_to_live
        return await admin.describe(self._node.storage, found, silent_before=silent_before)

    async def history(self) -> list[JournalEvent]:
        """Its journal: every step, attempt, timer and message, in the order the body saw them."""
        return await admin.history(self._node.storage, await self._find())

    def result_of(self, exit: Exit) -> T:
        """The result in an exit, or its error raised."""
        name = f"{self._definition.name}/{self.id}"
        match exit:
            case Success(value):
                result: T = self._definition.result.decode(value)
                return result
            case Failure(error) | Defect(error):
                raise ExecutionFailed(f"{name} failed: {error}", error)
            case Interrupted(reason):
                raise ExecutionInterrupted(reason)
            case Terminated(reason):
                raise ExecutionTerminated(reason)

    async def _find(self) -> Snowflake:
        if self._request_id is None:
            found = await admin.find(self._node.storage, self._definition.name, self.id)
            self._request_id = found.request_id
        return self._request_id

    def _own(self, deferred: Deferred[Any]) -> str:
        if self._definition.deferreds.get(deferred.name) is not deferred:
            raise ConfigurationError(
                f"{deferred.owner}.{deferred.name} is not a deferred of {self._definition.name}"
            )
        return deferred.name

    async def _tell(self, tag: str, payload: bytes, *, once: str | None = None) -> bool:
        return await by_name.tell(
            self._node,
            workflow=self._definition.name,
            group=self._definition.group,
            id=self.id,
            tag=tag,
            payload=payload,
            once=once,
        )
