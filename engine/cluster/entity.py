"""``Entity``: a named thing that handles its messages in order; and the host that runs them.

Rows come from ``cluster.delivery``; handlers run in tasks of the host; replies leave through the
shard's lane.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any, ClassVar

from engine.cluster.delivery import Delivery
from engine.cluster.mailbox import Mailbox
from engine.cluster.rpc import RpcDefinition, rpc_of
from engine.cluster.shard import OwnedShard
from engine.core.clock import Alarm, Clock
from engine.core.errors import ConfigurationError, ErrorDetails, InvalidPayload, OwnershipLost
from engine.core.names import definition_name, refuse_reserved
from engine.core.reply import Defect, Exit, Failure, Success, encode_exit
from engine.storage.protocol import BadBatch, Commit, Flushed, InboxRow, NewReply

log: logging.Logger = logging.getLogger(__name__)
_ID = "_outlast_id"


class Entity:
    """Base class of entities: one instance per id lives on whichever runner owns its shard.

    The object you register is a prototype; each id gets a shallow copy of it on its first message
    and loses it after ``max_idle`` without one. ``concurrency`` is how many messages of one id run
    at once (0: any number); with 1 they run one after the other, in the order they were sent.

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

    @property
    def entity_id(self) -> str:
        """The id of this instance."""
        try:
            return str(self.__dict__[_ID])
        except KeyError:
            raise ConfigurationError(
                f"this {type(self).__name__} is a prototype; it has an id inside its handlers"
            ) from None


_OPTIONS = frozenset({"name", "shard_group", "max_idle", "concurrency"})
_RESERVED = frozenset(name for name in vars(Entity) if not name.startswith("__")) - _OPTIONS


def rpcs_of(entity: type[Entity]) -> dict[str, RpcDefinition]:
    """The handlers of an entity class by tag, inherited and mixed-in ones included."""
    found: dict[str, RpcDefinition] = {}
    for attribute in dir(entity):
        definition = rpc_of(getattr(entity, attribute))
        if definition is not None:
            other = found.setdefault(definition.name, definition)
            if other is not definition:
                raise ConfigurationError(
                    f"{entity.__qualname__} has two handlers named {definition.name!r};"
                    " give one of them another name= in @rpc"
                )
    return found


def check_handlers(entity: type[Entity]) -> dict[str, RpcDefinition]:
    """The handlers, with every codec built: a type that cannot be stored is refused here."""
    found = rpcs_of(entity)
    for definition in found.values():
        _ = definition.signature
    return found


class EntityHost:
    """Runs the messages of one entity type on this runner (a ``MessageHost``)."""

    def __init__(
        self,
        prototype: Entity,
        *,
        delivery: Delivery,
        clock: Clock,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
    ) -> None:
        self.prototype = prototype
        self._rpcs = check_handlers(type(prototype))
        self._delivery = delivery
        self.clock = clock
        self._spawn = spawn
        self._instances: dict[str, _Instance] = {}
        self._tasks: dict[OwnedShard, set[asyncio.Task[None]]] = {}

    def __len__(self) -> int:
        return len(self._instances)

    def deliver(self, shard: OwnedShard, row: InboxRow) -> None:
        id = row.envelope.address.entity_id
        instance = self._instances.get(id)
        if instance is None or instance.shard is not shard:
            instance = self._instances[id] = _Instance(self, shard, id)
        instance.mailbox.put(row)

    def drop(self, shard: OwnedShard) -> None:
        for task in self._tasks.pop(shard, ()):
            task.cancel()
        for id in [id for id, each in self._instances.items() if each.shard is shard]:
            self._instances.pop(id).leave()

    async def drain(self, shard: OwnedShard, grace: timedelta) -> None:
        for instance in self._instances.values():
            if instance.shard is shard:
                instance.mailbox.clear()
        tasks = self._tasks.get(shard)
        if tasks:
            await asyncio.wait(tasks, timeout=grace.total_seconds())
        self.drop(shard)

    def start(self, instance: "_Instance", row: InboxRow) -> None:
        task = self._spawn(self._handle(instance, row))
        tasks = self._tasks.setdefault(instance.shard, set())
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    def reap(self, instance: "_Instance") -> None:
        if self._instances.get(instance.id) is instance:
            del self._instances[instance.id]

    async def _handle(self, instance: "_Instance", row: InboxRow) -> None:
        try:
            exit = await self._run(instance.entity, row)
        except asyncio.CancelledError:
            return  # the shard is gone or going: the row is delivered again to its next owner
        finally:
            instance.ended()
        reply = _Answer(self._delivery, instance.shard, row, exit)
        try:
            instance.shard.submit(reply)
        except OwnershipLost:
            log.info(
                "a reply came after its shard was lost; the next owner handles the request again",
                extra={"request_id": row.envelope.request_id, "shard": str(row.shard)},
            )

    async def _run(self, entity: Entity, row: InboxRow) -> Exit:
        envelope = row.envelope
        rpc = self._rpcs.get(envelope.tag)
        if rpc is None:
            return Defect(
                ErrorDetails(
                    "NotRegistered",
                    f"{entity.name} has no handler {envelope.tag!r}; it has {sorted(self._rpcs)}",
                )
            )
        try:
            args, kwargs = rpc.signature.decode(envelope.payload)
        except InvalidPayload as error:
            return Defect(ErrorDetails.of(error))
        try:
            result = await rpc.function(entity, *args, **kwargs)
            return Success(rpc.signature.result.encode(result))
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            return Failure(ErrorDetails.of(error))
        except (KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 -- whatever a handler raises is its reply
            return Failure(ErrorDetails.of(error))


class _Instance:
    """One entity in memory: its copy of the prototype and its mailbox."""

    __slots__ = ("_alarm", "_host", "_idle_until", "entity", "id", "mailbox", "shard")

    def __init__(self, host: EntityHost, shard: OwnedShard, id: str) -> None:
        self._host = host
        self._alarm: Alarm | None = None
        self._idle_until = host.clock.now()
        self.id: str = id
        self.shard: OwnedShard = shard
        prototype = host.prototype
        self.entity: Entity = prototype.__class__.__new__(prototype.__class__)
        self.entity.__dict__.update(prototype.__dict__)
        self.entity.__dict__[_ID] = id
        self.mailbox: Mailbox = Mailbox(concurrency=prototype.concurrency, start=self._start)

    def _start(self, row: InboxRow) -> None:
        self._host.start(self, row)

    def ended(self) -> None:
        self.mailbox.ended()
        self._idle_until = self._host.clock.now() + self.entity.max_idle
        if self.mailbox.empty and self._alarm is None:
            self._alarm = self._host.clock.call_at(self._idle_until, self._look)

    def leave(self) -> None:
        """It is out of memory."""
        self.mailbox.clear()
        if self._alarm is not None:
            self._alarm.cancel()

    def _look(self) -> None:
        """One alarm at a time, however many messages come: it is set anew when it was early."""
        self._alarm = None
        clock = self._host.clock
        if not self.mailbox.empty:
            return  # the end of its message sets the next
        if clock.now() < self._idle_until:
            self._alarm = clock.call_at(self._idle_until, self._look)
        else:
            self._host.reap(self)


class _Answer:
    """The exit of one request on its way into the lane."""

    __slots__ = ("_commit", "_delivery", "_shard")

    def __init__(self, delivery: Delivery, shard: OwnedShard, row: InboxRow, exit: Exit) -> None:
        self._delivery = delivery
        self._shard = shard
        kind, payload = encode_exit(exit)
        reply = NewReply(
            request_id=row.envelope.request_id,
            sequence=0,
            kind=kind,
            payload=payload,
            reply_to=row.envelope.reply_to,
        )
        self._commit = Commit(shard=shard.id, replies=[reply], settled=[row.seq])

    def collect(self) -> Commit:
        return self._commit

    def committed(self, flushed: Flushed) -> None:
        self._delivery.committed(self._shard, self._commit, flushed)

    def refused(self, error: BadBatch) -> None:
        """The reply itself cannot be stored: answer with that error instead."""
        reply = self._commit.replies[0]
        log.error(
            "a reply was refused", extra={"request_id": reply.request_id, "error": str(error)}
        )
        kind, payload = encode_exit(
            Defect(ErrorDetails("BadBatch", f"the reply was refused: {error}"))
        )
        self._commit.replies = [
            NewReply(
                request_id=reply.request_id,
                sequence=0,
                kind=kind,
                payload=payload,
                reply_to=reply.reply_to,
            )
        ]
        try:
            self._shard.submit(self)
        except OwnershipLost:
            return
