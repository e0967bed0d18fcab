"""``Schedule``: a handle on a cron, from any process, by its class or by its name alone.

It is read from the rows its owner writes, and changed by messages to the cron's own address. Made
by ``client``; used by the CLI, which knows no classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from engine.admin import readable_exit
from engine.asking import ask
from engine.cluster.cron import cron_address, cron_type
from engine.cluster.cron_desk import CronDesk, Triggered
from engine.cluster.cron_row import ScheduleSettings
from engine.cluster.timetable import Overlap, Timetable
from engine.core.envelope import dedup_key
from engine.core.errors import ConfigurationError, NotFound
from engine.core.ids import EntityAddress, EntityId, RunnerId, ShardId, Snowflake
from engine.core.reply import Exit, ReplyKind
from engine.storage.protocol import Storage
from engine.storage.schedules import FireOutcome, ScheduleRow

if TYPE_CHECKING:
    from engine.node import Node


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleInfo:
    """A cron as its owner has last registered it, and where it stands.

    ``starts`` says what it starts. ``running`` are the requests of its runs that have not ended
    (not known where runs may overlap), ``buffered`` is the instant that waits for one of them.
    ``backfill`` are the times, both ends included, that it still makes up for.
    """

    name: str
    schedule: str
    timezone: str
    starts: str
    overlap: Overlap
    catch_up: timedelta
    skip_if_older_than: timedelta | None
    paused: bool
    reason: str
    next_at: datetime | None
    done_until: datetime
    buffered: datetime | None
    running: Sequence[Snowflake]
    backfill: Sequence[tuple[datetime, datetime]]
    shard: ShardId
    runner: RunnerId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FireInfo:
    """An instant of a cron and what became of it.

    ``outcome`` None: it waits for another run to end. ``manual``: it was triggered or made up for.
    ``exit`` is how its run ended, None if it has not begun or not ended.
    """

    instant: datetime
    outcome: FireOutcome | None
    manual: bool
    request_id: Snowflake | None
    at: datetime | None = None
    exit: Exit | None = None


class Schedule:
    """A cron, wherever it is kept. Changes return once they are durable: its owner has to be
    there for that, so give them a time-out where none may be."""

    __slots__ = ("_address", "_node", "name")

    def __init__(self, node: "Node", cron: type[Timetable] | str) -> None:
        self._node = node
        self.name: str = cron if isinstance(cron, str) else cron.name
        self._address: type[Timetable] | None = None if isinstance(cron, str) else cron

    async def describe(self) -> ScheduleInfo:
        """Where it stands; ``NotFound`` when no runner has ever registered it."""
        (info,) = await schedules(self._node.storage, self.name)
        return info

    async def fires(self, limit: int = 20) -> list[FireInfo]:
        """The latest instants, youngest first."""
        return await fires(self._node.storage, self.name, limit=limit)

    async def pause(self, reason: str = "") -> None:
        """Fire nothing until ``resume``, but what is asked for. What runs goes on; an instant that
        waits for its end is left out."""
        await self._call(CronDesk.pause, reason=reason)

    async def resume(self) -> None:
        """Fire again, from now on: instants that came while it was paused are left out."""
        await self._call(CronDesk.resume)

    async def trigger(self, *, id: str | None = None) -> FireInfo:
        """Run now, as far as its overlap policy allows; also while it is paused.

        Triggers with the same ``id`` are one: they run once and share the answer.
        """
        key = None if id is None else dedup_key("trigger", self.name, id)
        done: Triggered = await self._call(CronDesk.trigger, key=key)
        return FireInfo(
            instant=done.instant,
            outcome=done.outcome,
            manual=True,
            request_id=None if done.request_id is None else Snowflake(done.request_id),
        )

    async def backfill(self, first: datetime, last: datetime) -> int:
        """Make up for the instants of a time, both ends included, that were never started, in
        their order; how many instants it has. Where runs may not overlap, one runs after the other.
        """
        if first.tzinfo is None or last.tzinfo is None:
            raise ConfigurationError("backfill() needs aware datetimes; give them a time zone")
        count: int = await self._call(CronDesk.backfill, first=first, last=last)
        return count

    async def _call(self, method: object, *, key: str | None = None, **arguments: object) -> Any:
        of = f"cron {self.name}"
        return await ask(self._node, await self._find(), method, arguments, of=of, key=key)

    async def _find(self) -> EntityAddress:
        if self._address is not None:
            group = self._address.shard_group
            await self._node.know(group)
            return cron_address(self._address, self._node.storage.shards_in(group))
        shard = (await self.describe()).shard
        await self._node.know(shard.group)
        return EntityAddress(shard, cron_type(self.name), EntityId(self.name))


async def schedules(storage: Storage, name: str | None = None) -> list[ScheduleInfo]:
    """All crons that were ever registered, by name; or the one, or ``NotFound``."""
    rows = await storage.schedules(None if name is None else [name])
    if name is not None and not rows:
        raise NotFound(
            f"no runner has registered a cron named {name!r}; 'outlast schedules' lists those"
            " there are"
        )
    ids = [request for row in rows for request in row.running]
    ended = {each.request_id for each in await storage.replies(ids)} if ids else set[Snowflake]()
    return [_info(row, ended) for row in rows]


async def fires(storage: Storage, name: str, *, limit: int) -> list[FireInfo]:
    """The latest instants of a cron, youngest first, with how their runs ended."""
    found = await storage.fires(name, limit=limit)
    ids = [fire.request_id for fire in found if fire.request_id is not None]
    exits = {
        reply.request_id: readable_exit(reply)
        for reply in (await storage.replies(ids) if ids else ())
        if reply.kind is not ReplyKind.CHUNK
    }
    return [
        FireInfo(
            instant=fire.instant,
            outcome=fire.outcome,
            manual=fire.manual,
            request_id=fire.request_id,
            at=fire.at,
            exit=None if fire.request_id is None else exits.get(fire.request_id),
        )
        for fire in found
    ]


def _info(row: ScheduleRow, ended: "set[Snowflake]") -> ScheduleInfo:
    settings = ScheduleSettings.decode(row.settings)
    return ScheduleInfo(
        name=row.name,
        schedule=row.schedule,
        timezone=row.timezone,
        starts=settings.starts,
        overlap=Overlap(settings.overlap),
        catch_up=settings.catch_up,
        skip_if_older_than=settings.skip_if_older_than,
        paused=row.paused,
        reason=settings.reason,
        next_at=row.next_at,
        done_until=row.done_until,
        buffered=row.buffered,
        running=[request for request in row.running if request not in ended],
        backfill=[(span.first, span.last) for span in settings.backlog],
        shard=row.shard,
        runner=row.runner,
    )
