"""``Cron``: a method that runs at the instants of a schedule, on whichever runner owns its shard.

A run is a persisted request to the cron's own address; ``cluster.cron_keeper`` sends it at the
instant, and ``cluster.cron_desk`` handles it.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from engine.cluster.timetable import Rules, Timetable
from engine.core.ids import EntityAddress, EntityId, EntityType, ShardId, Snowflake, shard_of
from engine.storage.protocol import SaveRequest


class Cron(Timetable):
    """Base class of crons: ``run`` is called once for each instant of ``schedule``.

    An instant is fired once, whatever becomes of runners meanwhile; ``run`` itself may be called
    again for it when its runner dies in the middle. ``overlap``, ``catch_up`` and
    ``skip_if_older_than`` say what becomes of instants that cannot run just then.

    >>> import asyncio
    >>> from datetime import timedelta
    >>> from engine.testing import TestCluster
    >>> class Hourly(Cron):
    ...     schedule = "0 * * * *"
    ...
    ...     def __init__(self) -> None:
    ...         self.seen: list[str] = []
    ...
    ...     async def run(self, at: datetime) -> None:
    ...         self.seen.append(f"{at:%H:%M}")
    >>> async def main() -> list[str]:
    ...     async with TestCluster(hourly := Hourly()) as cluster:
    ...         await cluster.advance(timedelta(hours=2))
    ...     return hourly.seen
    >>> asyncio.run(main())
    ['01:00', '02:00']
    """

    async def run(self, at: datetime) -> None:
        """Its work for the instant ``at`` (aware, in UTC). Override it."""
        raise NotImplementedError(f"{type(self).__name__} does not define run()")


class StartOfRun(Protocol):
    """Makes the request that runs an instant. Whatever a user's code raises comes out of it."""

    def __call__(self, request_id: Snowflake, at: datetime) -> SaveRequest: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CronDefinition:
    """A cron as its owner needs it: any ``Timetable`` and what it starts, in words and in deed."""

    name: str
    shard: ShardId
    rules: Rules
    starts: str
    start: StartOfRun


def cron_type(name: str) -> EntityType:
    """The entity type of a cron's own address. No entity can have it: names hold no colon."""
    return EntityType(f"cron:{name}")


def cron_address(cron: Timetable | type[Timetable], shards: int) -> EntityAddress:
    """Where a cron's messages go: pauses, triggers and the like, and the runs of a method."""
    shard = shard_of(cron.shard_group, shards, "cron", cron.name)
    return EntityAddress(shard, cron_type(cron.name), EntityId(cron.name))
