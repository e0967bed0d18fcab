"""Schedules as rows: what a cron was last told to do, and every instant it has dealt with.

Written by the owner of the schedule's shard through ``Commit``; read by it and by people.
"""

from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from engine.core.ids import RunnerId, ShardId, Snowflake


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleRow:
    """One row of ``schedules``: a cron's definition as last registered, and where it stands.

    Every instant up to and with ``done_until`` has been dealt with. ``next_at`` is the first one
    after it, None when there will be none. ``running`` are the requests it fired that have not
    been seen to end; ``buffered`` is the instant that waits for one of them (overlap: buffer one).
    ``settings`` holds overlap, windows and the like as JSON, for people to read.
    """

    name: str
    shard: ShardId
    schedule: str
    timezone: str
    settings: bytes
    paused: bool = False
    done_until: datetime
    next_at: datetime | None = None
    buffered: datetime | None = None
    running: tuple[Snowflake, ...] = field(default=())
    runner: RunnerId | None = None
    """Who owns its shard now; only when read."""


class FireOutcome(IntEnum):
    """What became of an instant of a schedule."""

    STARTED = 0
    OVERLAPPED = 1
    """Skipped, since an earlier one was still running."""
    MISSED = 2
    """Skipped, since it was noticed after the catch-up window."""
    TOO_OLD = 3
    """Skipped, since it would have begun too late to be of use."""
    FAILED = 4
    """Skipped, since what it was to start could not be made or stored."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fire:
    """One row of ``schedule_fires``: an instant of a schedule and what became of it. There is at
    most one per schedule and instant: the first stays, but one that was skipped gives way to one
    that was started. ``manual``: triggered or backfilled."""

    schedule: str
    instant: datetime
    outcome: FireOutcome
    request_id: Snowflake | None = None
    manual: bool = False
    at: datetime
