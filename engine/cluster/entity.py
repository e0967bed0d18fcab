"""``Entity``: a named thing that handles its messages in order.

Its definition is read here; ``cluster.entity_host`` runs it.
"""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, ClassVar

from engine.cluster.call import CURRENT, Call
from engine.cluster.rpc import RpcDefinition
from engine.cluster.rpc_group import rpcs_of
from engine.cluster.state import state_of
from engine.core.errors import ConfigurationError
from engine.core.names import definition_name, refuse_reserved

_ID = "_outlast_id"
_KEPT = "_outlast_kept"


class Entity:
    """Base class of entities: one instance per id lives on whichever runner owns its shard.

    The object you register is a prototype; each id gets a shallow copy of it on its first message
    and loses it after ``max_idle`` without one. ``concurrency`` is how many messages of one id run
    at once (0: any number); with 1 they run one after the other, in the order they were sent.
    ``mailbox_capacity`` is how many may wait in memory for that: further ones stay in the database,
    and volatile ones are refused with ``MailboxFull``. What must outlive memory goes into a
    ``State``.

    >>> import asyncio
    >>> from engine import rpc
    >>> from engine.testing import TestCluster
    >>> class Counter(Entity):
    ...     def __init__(self) -> None:
    ...         self.total = 0
    ...
    ...     @rpc
    ...     async def add(self, by: int) -> int:
    ...         self.total += by
    ...         return self.total
    >>> async def main() -> int:
    ...     async with TestCluster(Counter()) as cluster:
    ...         counter = cluster.client.entity(Counter, "c-1")
    ...         await counter.add(1)
    ...         return await counter.add(2)
    >>> asyncio.run(main())
    3
    """

    name: ClassVar[str]
    shard_group: ClassVar[str] = "default"
    max_idle: ClassVar[timedelta] = timedelta(minutes=1)
    mailbox_capacity: ClassVar[int] = 1000
    concurrency: ClassVar[int] = 1

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_reserved(cls, Entity, reserved=_RESERVED, options=_OPTIONS)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        definition_name(cls.name, what=f"entity {cls.__qualname__}")
        if cls.concurrency < 0:
            raise ConfigurationError(
                f"{cls.__qualname__}.concurrency must be 0 (any number) or more"
            )
        if cls.mailbox_capacity < 1:
            raise ConfigurationError(f"{cls.__qualname__}.mailbox_capacity must be 1 or more")
        state_of(cls)

    @property
    def entity_id(self) -> str:
        """The id of this instance."""
        try:
            return str(self.__dict__[_ID])
        except KeyError:
            raise ConfigurationError(
                f"this {type(self).__name__} is a prototype; it has an id inside its handlers"
            ) from None

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers of the message being handled."""
        return self._call().envelope.headers

    @property
    def trace(self) -> str | None:
        """The W3C trace context (``traceparent``) of the message being handled. Messages sent
        from here carry it on."""
        return self._call().envelope.trace

    @property
    def next_sequence(self) -> int:
        """Inside a stream: the sequence of the first element that is not stored yet, 0 at first."""
        return self._call().next_sequence

    def keep_alive(self, on: bool = True) -> None:
        """Keep this entity in memory without messages, until its shard moves or this is turned
        off. It makes no room for others when the runner holds as many as it may."""
        self.__dict__[_KEPT] = on

    def _call(self) -> Call:
        call = CURRENT.get()
        if call is None or call.entity is not self:
            raise ConfigurationError(
                f"this is known inside a handler of this {type(self).__name__} only"
            )
        return call


_OPTIONS = frozenset({"name", "shard_group", "max_idle", "mailbox_capacity", "concurrency"})
_RESERVED = frozenset(name for name in vars(Entity) if not name.startswith("__")) - _OPTIONS


def check_handlers(entity: type[Entity]) -> dict[str, RpcDefinition]:
    """The handlers, with every codec built: a type that cannot be stored is refused here."""
    found = rpcs_of(entity)
    for definition in found.values():
        _ = definition.signature
    state = state_of(entity)
    if state is not None:
        state.codec.encode(state.begin())
    return found


def copy_of(prototype: Entity, id: str) -> Entity:
    """The instance of one id: a shallow copy, so that what it assigns is its own."""
    entity = prototype.__class__.__new__(prototype.__class__)
    entity.__dict__.update(prototype.__dict__)
    entity.__dict__[_ID] = id
    return entity


def is_kept(entity: Entity) -> bool:
    """Whether it asked to be kept in memory."""
    return bool(entity.__dict__.get(_KEPT))
