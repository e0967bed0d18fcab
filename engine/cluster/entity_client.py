"""``EntityClient``: messages to the entities of one type, for senders that do not have its class.

Made by ``Sharding.make_client``, which sends what it makes.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from engine.cluster.handle import CallOptions, call_key
from engine.cluster.receiver import ReplyReceiver
from engine.cluster.rpc import RpcDefinition
from engine.core.codec import ValueCodec
from engine.core.envelope import EnvelopeRequest, Uninterruptible
from engine.core.errors import ConfigurationError
from engine.core.ids import EntityAddress, EntityId, EntityType, Snowflake
from engine.core.names import definition_name, entity_id
from engine.core.trace import checked_headers, checked_trace


class EntityClient:
    """Sends to the entities of one type by the names of their handlers.

    Arguments are given by name, as plain values (``{"count": 1}``), or encoded already
    (``payload=b'{"count": 1}'``). Options sit on the client: ``client.options(key="once")`` is
    another one with that key. What the handler's ``@rpc`` says of ``key``, ``persisted`` and
    ``uninterruptible`` holds where its type is registered in this process; otherwise messages are
    persisted and interruptible, unless options say otherwise.

    >>> import asyncio
    >>> from engine import Entity, EntityType, Success, rpc
    >>> from engine.testing import TestCluster
    >>> class Stock(Entity):
    ...     @rpc
    ...     async def reserve(self, count: int) -> str:
    ...         return f"{count} of {self.entity_id}"
    >>> async def main() -> object:
    ...     async with TestCluster(Stock()) as cluster:
    ...         client = cluster.runner.sharding.make_client(EntityType("Stock"))
    ...         return await (await client.send("sku-1", "reserve", {"count": 2}))
    >>> asyncio.run(main())
    Success(value=b'"2 of sku-1"')
    """

    __slots__ = ("_options", "_way", "entity_type")

    def __init__(
        self, entity_type: EntityType, way: "Way", options: "Options | None" = None
    ) -> None:
        self.entity_type: EntityType = entity_type
        self._way = way
        self._options = options or Options()

    def options(
        self,
        *,
        at: datetime | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        trace: str | None = None,
        persisted: bool | None = None,
        uninterruptible: Uninterruptible | None = None,
    ) -> "EntityClient":
        """A client of the same type with these options, and with none that this one has.

        ``at``: deliver not before then. ``key``: what is sent with one key to one handler of one
        entity runs once, and its reply is shared. ``trace``: a W3C ``traceparent``.
        """
        if at is not None and at.tzinfo is None:
            raise ConfigurationError("at= needs an aware datetime; give it a time zone")
        call = CallOptions(
            deliver_at=at, key=key, headers=checked_headers(headers), trace=checked_trace(trace)
        )
        options = Options(call=call, persisted=persisted, uninterruptible=uninterruptible)
        return EntityClient(self.entity_type, self._way, options)

    async def send(
        self,
        id: str,
        tag: str,
        arguments: Mapping[str, object] | None = None,
        *,
        payload: bytes | None = None,
    ) -> ReplyReceiver:
        """Send a message, which is stored once this returns, and give the way to its answer:
        ``exit = await (await client.send(...))``."""
        envelope = await self._envelope(id, tag, arguments, payload)
        return await self._way.send(envelope)

    async def notify(
        self,
        id: str,
        tag: str,
        arguments: Mapping[str, object] | None = None,
        *,
        payload: bytes | None = None,
    ) -> None:
        """Send a message whose answer nobody here waits for."""
        await self._way.notify(await self._envelope(id, tag, arguments, payload))

    async def _envelope(
        self, id: str, tag: str, arguments: Mapping[str, object] | None, payload: bytes | None
    ) -> EnvelopeRequest:
        name, options = self.entity_type, self._options
        definition_name(tag, what=f"a handler of {name}")
        address = await self._way.address(name, EntityId(entity_id(id, what=f"the id of a {name}")))
        rpc = self._way.rpc(name, tag)
        payload = _encoded(f"{name}.{tag}", rpc, arguments, payload)
        return EnvelopeRequest(
            request_id=await self._way.next_id(),
            address=address,
            tag=tag,
            payload=payload,
            headers=options.call.headers,
            trace=options.call.trace,
            persisted=options.persists(rpc),
            uninterruptible=options.shields(rpc),
            deliver_at=options.call.deliver_at,
            key=_key(address, tag, options.call.key, rpc, payload),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was said of a client's messages; None: what their handlers say."""

    call: CallOptions = field(default_factory=CallOptions)
    persisted: bool | None = None
    uninterruptible: Uninterruptible | None = None

    def persists(self, rpc: RpcDefinition | None) -> bool:
        if self.persisted is not None:
            return self.persisted
        return rpc is None or rpc.persisted

    def shields(self, rpc: RpcDefinition | None) -> Uninterruptible:
        if self.uninterruptible is not None:
            return self.uninterruptible
        return Uninterruptible.NO if rpc is None else rpc.uninterruptible


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """How an entity client's messages leave. ``address`` finds the entity, ``rpc`` a handler's
    definition where its type is registered in this process."""

    send: Callable[[EnvelopeRequest], Awaitable[ReplyReceiver]]
    notify: Callable[[EnvelopeRequest], Awaitable[None]]
    next_id: Callable[[], Awaitable[Snowflake]]
    address: Callable[[EntityType, EntityId], Awaitable[EntityAddress]]
    rpc: Callable[[EntityType, str], RpcDefinition | None]


def _encoded(
    name: str,
    rpc: RpcDefinition | None,
    arguments: Mapping[str, object] | None,
    payload: bytes | None,
) -> bytes:
    """The arguments as they travel: one JSON object by name."""
    if payload is not None:
        if arguments is not None:
            raise ConfigurationError(f"give arguments or payload= to {name}, not both")
        return payload
    if rpc is not None:
        return rpc.signature.validated((), arguments or {})
    return _ARGUMENTS.encode(dict(arguments or {}))


def _key(
    address: EntityAddress, tag: str, key: str | None, rpc: RpcDefinition | None, payload: bytes
) -> str | None:
    if key is None and rpc is not None and rpc.key is not None:
        args, kwargs = rpc.signature.decode(payload)
        key = rpc.key(*args, **kwargs)
    return None if key is None else call_key(address.entity_type, tag, address.entity_id, key)


_ARGUMENTS: Final[ValueCodec[dict[str, Any]]] = ValueCodec(dict[str, Any], what="the arguments")
