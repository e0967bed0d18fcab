"""Entity handles: typed as the entity, but every call becomes a message.

Made by clients and by workflow bodies, which differ only in the ``Caller`` behind the handle.
"""

import hashlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import new_class
from typing import Any, TypeVar, cast

from engine.cluster.entity import Entity
from engine.cluster.rpc import HANDLE, RpcDefinition, rpc_of
from engine.core.envelope import EnvelopeRequest, ReplyTo, dedup_key
from engine.core.errors import ConfigurationError, NotRegistered
from engine.core.ids import EntityAddress, EntityId, EntityType, Snowflake, shard_of
from engine.core.names import entity_id

E = TypeVar("E", bound=Entity)
_KEY_LIMIT = 255
_STAND_IN = "__outlast_handle__"


@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """What a sender says of its calls, besides their arguments."""

    deliver_at: datetime | None = None
    key: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    trace: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityCall:
    """One call on a handle, before it has a request id."""

    entity: type[Entity]
    id: str
    rpc: RpcDefinition
    args: tuple[object, ...]
    kwargs: dict[str, object]
    options: CallOptions

    @property
    def name(self) -> str:
        return f"{self.entity.name}.{self.rpc.name}"

    def envelope(
        self,
        request_id: Snowflake,
        *,
        shards_in: Callable[[str], int],
        payload: bytes,
        reply_to: ReplyTo | None = None,
        trace: str | None = None,
    ) -> EnvelopeRequest:
        """The request to send; ``payload`` is the encoded arguments, ``trace`` that of the sender,
        which it is given unless its options have another. An execution's call is always stored."""
        return EnvelopeRequest(
            request_id=request_id,
            address=self.address(shards_in),
            tag=self.rpc.name,
            payload=payload,
            headers=self.options.headers,
            trace=self.options.trace or trace,
            persisted=self.rpc.persisted or reply_to is not None,
            uninterruptible=self.rpc.uninterruptible,
            deliver_at=self.options.deliver_at,
            key=self.dedup_key,
            reply_to=reply_to,
        )

    def address(self, shards_in: Callable[[str], int]) -> EntityAddress:
        group = self.entity.shard_group
        return EntityAddress(
            shard_of(group, shards_in(group), self.entity.name, self.id),
            EntityType(self.entity.name),
            EntityId(self.id),
        )

    @property
    def dedup_key(self) -> str | None:
        """What the request is stored under at most once, if anything."""
        key = self.options.key
        if key is None and self.rpc.key is not None:
            key = self.rpc.key(*self.args, **self.kwargs)
        return None if key is None else call_key(self.entity.name, self.rpc.name, self.id, key)


def call_key(entity_type: str, tag: str, id: str, key: str) -> str:
    """What a call of one entity's handler with a key is deduplicated by."""
    text = f"{len(id)}.{id}/{key}"
    if len(text) > 2 * _KEY_LIMIT:
        text = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return dedup_key("rpc", f"{entity_type}.{tag}", text)


_PLAIN = CallOptions()
Caller = Callable[[EntityCall], Coroutine[Any, Any, Any]]
StreamCaller = Callable[[EntityCall], AsyncGenerator[Any, None]]


class Handle:
    """What stands behind a handle object: where it points, its options, and who sends."""

    __slots__ = ("_caller", "_entity", "_stream", "id", "options")

    def __init__(
        self,
        entity: type[Entity],
        id: str,
        caller: Caller,
        *,
        stream: StreamCaller | None = None,
        options: CallOptions = _PLAIN,
    ) -> None:
        if not _is_entity(entity):
            raise ConfigurationError(
                f"{entity!r} is not an Entity class; pass the class, defined as class X(Entity)"
            )
        self._entity = entity
        self.id: str = entity_id(id, what=f"the id of a {entity.name}")
        self._caller = caller
        self._stream = stream
        self.options: CallOptions = options

    def prepare(
        self, rpc: RpcDefinition, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> EntityCall:
        return EntityCall(
            entity=self._entity,
            id=self.id,
            rpc=rpc,
            args=args,
            kwargs=kwargs,
            options=self.options,
        )

    def call(
        self, rpc: RpcDefinition, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Coroutine[Any, Any, Any] | AsyncGenerator[Any, None]:
        call = self.prepare(rpc, args, kwargs)
        if not rpc.stream:
            return self._caller(call)
        if self._stream is None:
            raise ConfigurationError(
                f"{call.name} is a stream, and a workflow's steps have one result each: iterate"
                " over it in an activity, with a client, and return what the body needs"
            )
        return self._stream(call)


def entity_handle(
    entity: type[E],
    id: str,
    caller: Caller,
    *,
    stream: StreamCaller | None = None,
    options: CallOptions = _PLAIN,
) -> E:
    """An object typed as the entity whose handlers send instead of run; without ``stream`` those
    that are streams cannot be called."""
    handle = Handle(entity, id, caller, stream=stream, options=options)
    stand_in = object.__new__(_handle_class(entity))
    stand_in.__dict__[HANDLE] = handle
    return stand_in


def call_on_handle(
    method: Callable[..., Awaitable[object]], args: tuple[object, ...], kwargs: dict[str, object]
) -> EntityCall:
    """The call that a handle's bound method would make, for ``tell`` and its like."""
    owner = getattr(method, "__self__", None)
    rpc = rpc_of(method)
    handle = getattr(owner, "__dict__", {}).get(HANDLE)
    if rpc is None or not isinstance(handle, Handle):
        raise ConfigurationError(
            f"{method!r} is not a handler of an entity handle;"
            " pass a bound method, as in client.tell(client.entity(Stock, 'sku-1').release, ...)"
        )
    if rpc.stream:
        raise ConfigurationError(
            f"{rpc.function.__qualname__} is a stream, which ends when nobody takes what it yields;"
            " iterate over it instead"
        )
    return handle.prepare(rpc, args, kwargs)


def _is_entity(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Entity) and cls is not Entity


def _handle_class(entity: type[E]) -> type[E]:
    """The class of an entity's handles, made on first use and kept on the entity's class."""
    found = vars(entity).get(_STAND_IN)
    if found is None:
        found = _make_handle_class(entity)
        setattr(entity, _STAND_IN, found)
    return cast("type[E]", found)


def _make_handle_class(entity: type[Entity]) -> type:

    def guarded(self: Any, name: str) -> Any:
        if name.startswith("__") or rpc_of(getattr(entity, name, None)) is not None:
            return object.__getattribute__(self, name)
        if not hasattr(entity, name):
            raise AttributeError(
                f"{entity.__name__} has no handler {name!r}; what an entity keeps on itself is"
                " reached through its handlers only"
            )
        raise NotRegistered(
            f"{entity.__name__}.{name} is not marked @rpc, so it cannot be reached from outside;"
            " mark the method @rpc, or add a handler that returns what you need"
        )

    attributes = {"name": entity.name, "__module__": entity.__module__, "__getattribute__": guarded}
    return new_class(
        f"{entity.__name__}Handle", (entity,), exec_body=lambda n: n.update(attributes)
    )
