"""``Queue``: work that any number of processes hand in, and that is done within limits.

An item is a persisted request to its queue's address. The owner of that shard admits it
(``cluster.dispatcher``); the owner of another, wherever that is, processes it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, ClassVar, Generic, TypeVar

from engine.cluster.call import CURRENT
from engine.cluster.limits import LARGEST, Limits, Rate
from engine.core.codec import Signature
from engine.core.envelope import EnvelopeRequest, ReplyTo, dedup_key
from engine.core.errors import ConfigurationError, InvalidPayload
from engine.core.generics import types_of
from engine.core.ids import EntityAddress, EntityId, ShardId, Snowflake, shard_of
from engine.core.names import definition_name, entity_id, refuse_reserved
from engine.storage.queues import PROCESS, queue_type

A = TypeVar("A")
B_co = TypeVar("B_co", covariant=True)
_DEFINITION = "__outlast_queue__"
_HEADER = "outlast-queue"


class Queue(Generic[A, B_co]):
    """Base class of queues: ``process`` is called for each item that was submitted.

    It runs at least once, on whichever runner has room, and again when that one is lost;
    ``idempotency_key`` stays the same. What it returns or raises is the item's answer.

    ``concurrency`` is how many items run at once in all, ``per_key`` of each key, ``per_runner`` on
    each runner (0: any number), ``rate`` how often one begins. An item counts from when it is
    admitted until its end is stored, whatever becomes of runners meanwhile. Of higher ``priority``
    go first; within one, keys take turns, and of one key the oldest goes first. ``shard_group`` can
    change once there are no items: until then runners refuse to start with it.

    >>> import asyncio
    >>> from engine.testing import TestCluster
    >>> class Parcels(Queue[str, str]):
    ...     concurrency = 10
    ...     per_key = 1
    ...
    ...     @classmethod
    ...     def key(cls, item: str) -> str:
    ...         return item.split("/")[0]
    ...
    ...     async def process(self, item: str) -> str:
    ...         return f"{item} was sent"
    >>> async def main() -> str:
    ...     async with TestCluster(Parcels()) as cluster:
    ...         item = await cluster.client.submit(Parcels, "ada/1")
    ...         return await item.join()
    >>> asyncio.run(main())
    'ada/1 was sent'
    """

    name: ClassVar[str]
    shard_group: ClassVar[str] = "default"
    concurrency: ClassVar[int] = 0
    per_key: ClassVar[int] = 0
    per_runner: ClassVar[int] = 0
    rate: ClassVar[Rate | None] = None
    priority: ClassVar[int] = 0

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_reserved(cls, Queue, reserved=_RESERVED, options=_OPTIONS, overridable=_OVERRIDABLE)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        definition_name(cls.name, what=f"queue {cls.__qualname__}")
        try:
            limits_of(cls)
            _priority(cls.priority)
        except (ConfigurationError, InvalidPayload) as error:
            raise ConfigurationError(f"queue {cls.__qualname__}: {error}") from error

    @classmethod
    def key(cls, item: A) -> str:
        """Whose item it is, for ``per_key`` and for taking turns. Default: all are of one key."""
        return ""

    async def process(self, item: A) -> B_co:
        """Do the work of an item. Override it."""
        raise NotImplementedError(f"{type(self).__name__} does not define process()")

    @property
    def item_id(self) -> str:
        """Inside ``process``: the id that the item was submitted with, or one of its own."""
        return self._request().address.entity_id

    @property
    def idempotency_key(self) -> str:
        """Inside ``process``: the same whenever this item is processed again, and no other's."""
        return f"{self.name}/{self._request().request_id}"

    def _request(self) -> EnvelopeRequest:
        call = CURRENT.get()
        if call is None or call.envelope.address.entity_type != queue_type(self.name):
            raise ConfigurationError(
                f"this is known inside the process() of a {type(self).__name__} only"
            )
        return call.envelope


_OPTIONS = frozenset(
    {"name", "shard_group", "concurrency", "per_key", "per_runner", "rate", "priority"}
)
_OVERRIDABLE = frozenset({"key", "process"})
_RESERVED = (
    frozenset(name for name in vars(Queue) if not name.startswith("__")) - _OPTIONS - _OVERRIDABLE
)


def limits_of(cls: type[Queue[Any, Any]]) -> Limits:
    """The limits that a class declares."""
    return Limits(
        concurrency=cls.concurrency, per_key=cls.per_key, per_runner=cls.per_runner, rate=cls.rate
    )


def queue_shard(name: str, group: str, shards: int) -> ShardId:
    """The shard whose owner admits the queue's items."""
    return shard_of(group, shards, "queue", name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """How an item is to be treated: whose it is, and what goes before it. It travels in a header of
    the item's request."""

    key: str
    priority: int
    debounce: str | None = None
    period: timedelta = timedelta(0)
    longest: timedelta = timedelta(0)

    def header(self) -> dict[str, str]:
        terms: list[object] = [self.key, self.priority]
        if self.debounce is not None:
            spans = self.period.total_seconds(), self.longest.total_seconds()
            terms.extend((self.debounce, *spans))
        return {_HEADER: json.dumps(terms)}

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Terms":
        """Read them again; ``InvalidPayload`` when nobody can have submitted that."""
        try:
            return cls._read(*json.loads(headers[_HEADER]))
        except (KeyError, ValueError, TypeError, OverflowError) as error:
            raise InvalidPayload(f"this was not submitted to a queue: {error!r}") from error

    @classmethod
    def _read(
        cls,
        key: str,
        priority: int,
        debounce: str | None = None,
        period: float = 0,
        longest: float = 0,
    ) -> "Terms":
        return cls(
            key=_key(key),
            priority=_priority(priority),
            debounce=None if debounce is None else entity_id(debounce, what="a debounce"),
            period=timedelta(seconds=period),
            longest=timedelta(seconds=longest),
        )


@dataclass(frozen=True, slots=True)
class Debounce:
    """The last of the items that come under one ``id`` within ``period`` of each other is the one
    that is processed: ``period`` after it came, but at most ``longest`` (ten periods unless given)
    after the first of them. Those in whose place it is end as interrupted.
    """

    id: str
    period: timedelta
    longest: timedelta | None = None

    def __post_init__(self) -> None:
        if self.period <= timedelta(0) or self.at_most < self.period:
            raise ConfigurationError(
                "the period of a debounce must be more than nothing, and the longest wait at least"
                " the period"
            )

    @property
    def at_most(self) -> timedelta:
        return 10 * self.period if self.longest is None else self.longest


class QueueDefinition:
    """What the engine reads off a queue's class, once."""

    __slots__ = ("cls", "group", "name", "signature")

    def __init__(self, cls: type[Queue[Any, Any]]) -> None:
        self.cls: type[Queue[Any, Any]] = cls
        self.name: str = cls.name
        self.group: str = cls.shard_group
        self.signature: Signature = Signature(processing(cls), what=f"{cls.__qualname__}.{PROCESS}")

    def terms(
        self,
        item: Any,
        *,
        id: str | None,
        key: str | None,
        priority: int | None,
        deliver_at: datetime | None,
        debounce: Debounce | None,
    ) -> Terms:
        """How an item is to be treated; ``InvalidPayload`` when that cannot be stored."""
        if debounce is not None and (id is not None or deliver_at is not None):
            raise ConfigurationError("an item that is debounced has no id= and no at= or delay=")
        terms = Terms(
            key=_key(self.cls.key(item) if key is None else key),
            priority=_priority(self.cls.priority if priority is None else priority),
        )
        if debounce is None:
            return terms
        return Terms(
            key=terms.key,
            priority=terms.priority,
            debounce=entity_id(debounce.id, what="the id of a debounce"),
            period=debounce.period,
            longest=debounce.at_most,
        )

    def request(
        self,
        request_id: Snowflake,
        *,
        shards_in: Callable[[str], int],
        payload: bytes,
        terms: Terms,
        id: str | None,
        deliver_at: datetime | None = None,
        reply_to: ReplyTo | None = None,
        trace: str | None = None,
    ) -> EnvelopeRequest:
        """The request that an item is; with ``id`` the same item is stored once."""
        own = str(request_id) if id is None else entity_id(id, what=f"the id of a {self.name} item")
        shard = queue_shard(self.name, self.group, shards_in(self.group))
        return EnvelopeRequest(
            request_id=request_id,
            address=EntityAddress(shard, queue_type(self.name), EntityId(own)),
            tag=PROCESS,
            payload=payload,
            headers=terms.header(),
            trace=trace,
            deliver_at=deliver_at,
            key=None if id is None else dedup_key("queue", self.name, own),
            reply_to=reply_to,
        )


def queue_of(cls: type[Queue[Any, Any]]) -> QueueDefinition:
    """The definition of a queue's class, made on first use and kept on the class."""
    if not _is_queue(cls):
        raise ConfigurationError(
            f"{cls!r} is not a Queue class; pass the class, defined as class X(Queue)"
        )
    found = vars(cls).get(_DEFINITION)
    if not isinstance(found, QueueDefinition):
        found = QueueDefinition(cls)
        setattr(cls, _DEFINITION, found)
    return found


def _is_queue(cls: object) -> bool:
    return isinstance(cls, type) and issubclass(cls, Queue) and cls is not Queue


def processing(cls: type[Queue[Any, Any]]) -> Callable[..., Any]:
    """A function that is annotated as the class's ``process`` is in effect."""
    taken, given = types_of(cls, Queue, PROCESS)

    async def process(self: Any, item: Any) -> Any:
        return await self.queue.process(item)

    process.__annotations__ = {"item": taken, "return": given}
    return process


def _key(value: str) -> str:
    return "" if value == "" else entity_id(value, what="the key of an item")


def _priority(value: object) -> int:
    if type(value) is not int or not -LARGEST <= value <= LARGEST:
        raise InvalidPayload(f"a priority must be a whole number of 32 bits, not {value!r}")
    return value
