"""Queues as rows: what each may do at once, and its items until each of them has ended.

Written by the owner of the queue's shard through ``LaneSession.dispatch``; read by it when it takes
the shard over, and by people.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from engine.core.ids import EntityType, RunnerId, ShardId, Snowflake
from engine.core.reply import ReplyKind

_PREFIX = "queue:"
PROCESS = "process"
"""The tag of an item's request."""


def queue_type(name: str) -> EntityType:
    """The entity type of a queue's items. No entity can have it: names hold no colon."""
    return EntityType(f"{_PREFIX}{name}")


def queue_named(type: str) -> str | None:
    """The queue whose items are of an entity type; None for the types of entities."""
    return type.removeprefix(_PREFIX) if type.startswith(_PREFIX) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueRow:
    """One row of ``queues``. ``settings`` holds its limits as JSON. ``next_at`` is where its token
    bucket stands: the time at which it will be full again (None: it is)."""

    name: str
    shard: ShardId
    settings: bytes
    paused: bool = False
    next_at: datetime | None = None
    runner: RunnerId | None = None
    """Who owns its shard now; only when read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueItem:
    """One row of ``queue_items``, from the item's arrival to its end.

    It is admitted when it has a ``shard``, whose owner processes it; it is put off when it has a
    ``due_at``; else it waits. ``seq`` orders those of one priority and key. ``debounce`` is what
    later items that take its place are known by, ``since`` when the first of them came.
    """

    request_id: Snowflake
    seq: int
    priority: int
    key: str
    shard: int | None = None
    due_at: datetime | None = None
    debounce: str | None = None
    since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """So many waiting items of one priority and key."""

    priority: int
    key: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueWrite:
    """What the owner of a queue writes at once, all of it or nothing.

    ``arrived`` are new items. Of each of ``lines`` so many of the oldest that are stored are
    admitted, to the shards of ``targets`` in this order. What is admitted gets an ADMITTED row in
    its shard's inbox. ``ripe`` are items that were put off and wait from now on, ``freed`` are to
    be forgotten, those of ``ended`` with an exit that nothing but their queue gives them.
    ``settled`` are inbox rows of the queue's shard to delete, and ``interrupted`` are admitted
    items, with their shards, to be told of an interrupt. ``row``: the queue's new row.
    """

    queue: str
    shard: ShardId
    arrived: Sequence[QueueItem] = ()
    lines: Sequence[Line] = ()
    targets: Sequence[int] = ()
    ripe: Sequence[Snowflake] = ()
    freed: Sequence[Snowflake] = ()
    ended: Sequence[tuple[Snowflake, ReplyKind, bytes]] = ()
    settled: Sequence[int] = ()
    interrupted: Sequence[tuple[Snowflake, int]] = ()
    row: QueueRow | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispatched:
    """What became of a ``QueueWrite``: the items that were chosen of its lines, and the shards of
    the executions that its exits are for, once for each. Ring them all."""

    chosen: Sequence[QueueItem]
    told: Sequence[ShardId]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueContents:
    """All that an owner needs to go on with a queue. ``held`` are items that are admitted or put
    off; those that wait are only counted."""

    row: QueueRow | None
    waiting: Sequence[Line]
    held: Sequence[QueueItem]


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueCounts:
    """A queue and how many items it has, those too that its owner has not taken in yet. ``delayed``
    are put off; ``oldest`` is the request of the oldest that waits."""

    row: QueueRow
    waiting: int
    delayed: int
    running: int
    oldest: Snowflake | None
