"""What is sent to a queue's address: its items once they are admitted, and changes of its settings.

An ``Entity`` of the engine's own for each queue, whose items are its ids, served like any other by
``cluster.entity_host``; ``cluster.queue_host`` stands in front of it.
"""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from types import new_class
from typing import Any

from engine.cluster.dispatcher import Change
from engine.cluster.entity import Entity
from engine.cluster.limits import LIMITS, QueueSettings
from engine.cluster.queue import Queue, limits_of, processing
from engine.cluster.rpc import rpc
from engine.core.errors import ConfigurationError
from engine.storage.queues import PROCESS, queue_type

Ask = Callable[[Change], Awaitable[None]]


class QueueDesk(Entity):
    """Handles the messages of one queue. Asking again changes nothing, so that a message that is
    delivered again does no harm."""

    concurrency = 0
    max_idle = timedelta(0)

    def __init__(self, queue: Queue[Any, Any], ask: Ask) -> None:
        self.__dict__["name"] = queue_type(queue.name)
        self.queue: Queue[Any, Any] = queue
        self._ask = ask

    @rpc
    async def pause(self, reason: str = "") -> None:
        """Admit nothing until ``resume``; what runs goes on."""

        def change(settings: QueueSettings) -> QueueSettings:
            return replace(settings, paused=True, reason=reason)

        await self._ask(Change(apply=change))

    @rpc
    async def resume(self) -> None:
        """Admit items again."""

        def change(settings: QueueSettings) -> QueueSettings:
            return replace(settings, paused=False, reason="")

        await self._ask(Change(apply=change))

    @rpc
    async def limit(self, changes: dict[str, Any], forget: list[str]) -> None:
        """Set limits in place of those that the class declares, or ``forget`` what was set."""
        unknown = {*changes, *forget}.difference(LIMITS)
        if unknown:
            raise ConfigurationError(f"a queue has no limit {min(unknown)!r}; it has {LIMITS}")

        def change(settings: QueueSettings) -> QueueSettings:
            kept = {n: limit for n, limit in settings.changes.items() if n not in forget}
            return replace(settings, changes={**kept, **changes})

        _ = limits_of(type(self.queue)).changed(changes)  # what cannot be is refused here
        await self._ask(Change(apply=change))


def desk_of(queue: Queue[Any, Any], ask: Ask) -> QueueDesk:
    """The desk of a queue, with ``process`` as its class is annotated."""
    handlers = {PROCESS: rpc(processing(type(queue)))}
    made: type[QueueDesk] = new_class(
        f"{type(queue).__name__}Desk", (QueueDesk,), exec_body=lambda n: n.update(handlers)
    )
    return made(queue, ask)
