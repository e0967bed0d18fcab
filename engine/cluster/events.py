"""What a runner tells of itself: the types it has begun to serve.

From ``register`` of the runner; heard through ``Sharding.registration_events``.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from weakref import WeakSet

from engine.core.ids import EntityType


@dataclass(frozen=True, slots=True)
class EntityRegistered:
    """The runner serves an entity type from now on. A workflow is one, too."""

    entity_type: EntityType
    shard_group: str = "default"


@dataclass(frozen=True, slots=True)
class SingletonRegistered:
    """The runner is ready to run a singleton, as soon as it owns its shard."""

    name: str
    shard_group: str = "default"


ShardingRegistrationEvent = EntityRegistered | SingletonRegistered


class RegistrationEvents:
    """Tells its subscribers. One that nobody iterates over any more is forgotten."""

    def __init__(self) -> None:
        self._subscriptions: WeakSet[_Subscription] = WeakSet()

    def subscribe(self) -> AsyncIterator[ShardingRegistrationEvent]:
        """Every event from this call on, in order, until ``close``."""
        subscription = _Subscription()
        self._subscriptions.add(subscription)
        return subscription

    def tell(self, event: ShardingRegistrationEvent) -> None:
        for subscription in self._subscriptions:
            subscription.put(event)

    def close(self) -> None:
        """End the iterations there are, after what they have not seen yet."""
        for subscription in self._subscriptions:
            subscription.put(None)
        self._subscriptions.clear()


class _Subscription:
    __slots__ = ("__weakref__", "_events")

    def __init__(self) -> None:
        self._events: asyncio.Queue[ShardingRegistrationEvent | None] = asyncio.Queue()

    def put(self, event: ShardingRegistrationEvent | None) -> None:
        self._events.put_nowait(event)

    def __aiter__(self) -> AsyncIterator[ShardingRegistrationEvent]:
        return self

    async def __anext__(self) -> ShardingRegistrationEvent:
        event = await self._events.get()
        if event is None:
            self.put(None)  # for whoever else iterates
            raise StopAsyncIteration
        return event
