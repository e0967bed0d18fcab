"""``QueueHandle``: a queue, from any process, by its class or by its name alone.

It is read from the rows its owner writes, and changed by messages to the queue's own address. Made
by ``client``; used by the CLI, which knows no classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, get_args

from engine.asking import ask
from engine.cluster.limits import Limits, QueueSettings, Rate, as_json
from engine.cluster.queue import Queue, queue_shard
from engine.cluster.queue_desk import QueueDesk
from engine.core.errors import NotFound
from engine.core.ids import EntityAddress, EntityId, RunnerId, ShardId, snowflake_time
from engine.storage.protocol import Storage
from engine.storage.queues import QueueCounts, queue_type

if TYPE_CHECKING:
    from engine.node import Node

LimitName = Literal["concurrency", "per_key", "per_runner", "rate"]
LIMIT_NAMES: tuple[LimitName, ...] = get_args(LimitName)


class LimitChanges(TypedDict, total=False):
    """Limits to set; those left out stay as they are."""

    concurrency: int
    per_key: int
    per_runner: int
    rate: Rate | None


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueInfo:
    """A queue as it stands. ``limits`` hold now, ``declared`` are those of its class; ``changed``
    names those that were set since. ``waiting`` items are due, ``delayed`` ones have a time to come
    or are debounced. ``oldest`` is when the one that has waited longest was submitted.
    """

    name: str
    limits: Limits
    declared: Limits
    changed: Sequence[str]
    paused: bool
    reason: str
    waiting: int
    delayed: int
    running: int
    oldest: datetime | None
    shard: ShardId
    runner: RunnerId | None


class QueueHandle:
    """A queue, wherever it is kept. Changes return once they are durable: its owner has to be there
    for that, so give them a time-out where none may be."""

    __slots__ = ("_node", "_queue", "name")

    def __init__(self, node: "Node", queue: type[Queue[Any, Any]] | str) -> None:
        self._node = node
        self.name: str = queue if isinstance(queue, str) else queue.name
        self._queue = None if isinstance(queue, str) else queue

    async def describe(self) -> QueueInfo:
        """How it stands; ``NotFound`` when no runner has ever registered it. Counts its items."""
        (info,) = await queues(self._node.storage, self.name)
        return info

    async def pause(self, reason: str = "") -> None:
        """Admit nothing until ``resume``; what runs goes on."""
        await self._call(QueueDesk.pause, reason=reason)

    async def resume(self) -> None:
        """Admit items again."""
        await self._call(QueueDesk.resume)

    async def limit(self, **limits: Unpack[LimitChanges]) -> None:
        """Set limits in place of those of its class, until ``reset``; they hold for what is
        admitted from now on. 0 is no limit, and ``rate=None`` no rate."""
        plain = as_json(Limits(**limits))
        await self._call(QueueDesk.limit, changes={name: plain[name] for name in limits}, forget=[])

    async def reset(self, *limits: LimitName) -> None:
        """Let the limits of its class hold again."""
        await self._call(QueueDesk.limit, changes={}, forget=list(limits))

    async def _call(self, method: object, **arguments: object) -> None:
        of = f"queue {self.name}"
        await ask(self._node, await self._address(), method, arguments, of=of)

    async def _address(self) -> EntityAddress:
        if self._queue is not None:
            group = self._queue.shard_group
            await self._node.know(group)
            shard = queue_shard(self.name, group, self._node.storage.shards_in(group))
        else:
            shard = (await self.describe()).shard
            await self._node.know(shard.group)
        return EntityAddress(shard, queue_type(self.name), EntityId(self.name))


async def queues(storage: Storage, name: str | None = None) -> list[QueueInfo]:
    """All queues that were ever registered, by name; or the one, or ``NotFound``."""
    found = await storage.queues(None if name is None else [name])
    if name is not None and not found:
        raise NotFound(
            f"no runner has registered a queue named {name!r}; 'outlast queues' lists those"
            " there are"
        )
    return [_info(each) for each in found]


def _info(counts: QueueCounts) -> QueueInfo:
    row = counts.row
    settings = QueueSettings.decode(row.settings, paused=row.paused)
    changed: Mapping[str, object] = settings.changes
    return QueueInfo(
        name=row.name,
        limits=settings.limits,
        declared=settings.declared,
        changed=sorted(changed),
        paused=row.paused,
        reason=settings.reason,
        waiting=counts.waiting,
        delayed=counts.delayed,
        running=counts.running,
        oldest=None if counts.oldest is None else snowflake_time(counts.oldest),
        shard=row.shard,
        runner=row.runner,
    )
