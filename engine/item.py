"""``Item``: a handle on what was submitted to a queue. Made by ``client.submit``."""

from datetime import timedelta
from typing import TYPE_CHECKING, Generic, TypeVar

from engine import admin
from engine.cluster.queue import QueueDefinition
from engine.core.clock import within
from engine.core.envelope import Interrupt
from engine.core.errors import ErrorDetails, NotFound, RequestFailed
from engine.core.ids import EntityAddress, Snowflake
from engine.core.outcome import Failed, Pending, Succeeded
from engine.core.reply import Defect, Failure, Interrupted, Success, Terminated
from engine.core.status import Status

if TYPE_CHECKING:
    from engine.node import Node

B = TypeVar("B")


class Item(Generic[B]):
    """An item of a queue, wherever it is processed and whoever submitted it."""

    def __init__(
        self,
        node: "Node",
        definition: QueueDefinition,
        address: EntityAddress,
        request_id: Snowflake,
    ) -> None:
        self._node = node
        self._definition = definition
        self._address = address
        self.request_id: Snowflake = request_id

    @property
    def id(self) -> str:
        """The id it was submitted with, or one of its own."""
        return self._address.entity_id

    def __repr__(self) -> str:
        return f"<Item {self._definition.name}/{self.id}>"

    async def join(self, timeout: timedelta | None = None) -> B:
        """What ``process`` returned. ``RequestFailed`` when it raised, when the item was cancelled,
        or when another has taken its place; ``TimeoutError`` after ``timeout``."""
        async with within(timeout):
            exit = await self._node.replies.wait(self.request_id)
        name = f"{self._definition.name}/{self.id}"
        match exit:
            case Success(value):
                result: B = self._definition.signature.result.decode(value)
                return result
            case Failure(error) | Defect(error):
                raise RequestFailed(f"{name} failed: {error}", error)
            case ended:
                details = ErrorDetails(type(ended).__name__, ended.reason)
                raise RequestFailed(f"{name} was ended: {ended.reason}", details)

    async def poll(self) -> Pending | Succeeded[B] | Failed | Interrupted | Terminated:
        """What has become of it by now: pending as scheduled until its queue admits it, from then
        on as running. ``NotFound`` when it was pruned."""
        match await admin.exit_of(self._node.storage, self.request_id):
            case None:
                return await self._pending()
            case Success(value):
                return Succeeded(self._definition.signature.result.decode(value))
            case Failure(error) | Defect(error):
                return Failed(error)
            case ended:
                return ended

    async def _pending(self) -> Pending:
        storage = self._node.storage
        place = await storage.place(self.request_id)
        if place is None and await storage.request(self.request_id) is None:
            raise NotFound(f"item {self.id} of {self._definition.name} has ended and was pruned")
        running = place is None or place.admitted
        return Pending(Status.RUNNING if running else Status.SCHEDULED)

    async def cancel(self) -> bool:
        """Ask it to end early: one that waits is taken out, one that runs sees a cancellation.
        False when it has ended already."""
        interrupt = Interrupt(request_id=self.request_id, address=self._address)
        (stored,) = await self._node.storage.interrupt([interrupt])
        if stored:
            self._node.ring_shards((self._address.shard,))
        return stored
