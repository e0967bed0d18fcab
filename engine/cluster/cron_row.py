"""A cron as a row of ``schedules``: its definition and where it stands, written and read again.

For ``cluster.cron_keeper``, and for the client and people who look at it.
"""

import json
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from engine.cluster.cron import CronDefinition
from engine.cluster.cron_plan import Span, Standing
from engine.cluster.instants import instant_text
from engine.storage.schedules import ScheduleRow


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSettings:
    """The JSON of a schedule's row: what its definition says, and what people asked for."""

    starts: str
    overlap: str
    catch_up: timedelta
    skip_if_older_than: timedelta | None
    reason: str = ""
    backlog: tuple[Span, ...] = ()

    def encode(self) -> bytes:
        limit = self.skip_if_older_than
        return json.dumps(
            {
                "starts": self.starts,
                "overlap": self.overlap,
                "catch_up": self.catch_up.total_seconds(),
                "skip_if_older_than": None if limit is None else limit.total_seconds(),
                "reason": self.reason,
                "backfill": [[instant_text(s.first), instant_text(s.last)] for s in self.backlog],
            }
        ).encode()

    @classmethod
    def decode(cls, settings: bytes) -> "ScheduleSettings":
        found: dict[str, Any] = json.loads(settings)
        limit = found.get("skip_if_older_than")
        ranges: list[list[str]] = found.get("backfill", [])
        return cls(
            starts=str(found.get("starts", "")),
            overlap=str(found.get("overlap", "")),
            catch_up=timedelta(seconds=found.get("catch_up", 0)),
            skip_if_older_than=None if limit is None else timedelta(seconds=limit),
            reason=str(found.get("reason", "")),
            backlog=tuple(
                Span(first=datetime.fromisoformat(first), last=datetime.fromisoformat(last))
                for first, last in ranges
            ),
        )


def settings_of(definition: CronDefinition, standing: Standing) -> ScheduleSettings:
    """What is stored of a definition and a standing besides the columns."""
    rules = definition.rules
    return ScheduleSettings(
        starts=definition.starts,
        overlap=rules.overlap.value,
        catch_up=rules.catch_up,
        skip_if_older_than=rules.skip_if_older_than,
        reason=standing.reason,
        backlog=standing.backlog,
    )


def row_of(definition: CronDefinition, standing: Standing) -> ScheduleRow:
    """The row to write."""
    instants = definition.rules.instants
    return ScheduleRow(
        name=definition.name,
        shard=definition.shard,
        schedule=instants.schedule,
        timezone=instants.timezone,
        settings=settings_of(definition, standing).encode(),
        paused=standing.paused,
        done_until=standing.done_until,
        next_at=None if standing.paused else instants.next(standing.done_until),
        buffered=standing.buffered,
        running=standing.running,
    )


def same_row(one: ScheduleRow, other: ScheduleRow) -> bool:
    """Whether two rows say the same, whoever owns their shard and however their JSON is written."""
    plain = replace(one, settings=b"", runner=None) == replace(other, settings=b"", runner=None)
    return plain and ScheduleSettings.decode(one.settings) == ScheduleSettings.decode(
        other.settings
    )


def standing_of(row: ScheduleRow) -> Standing:
    """What a stored row says."""
    settings = ScheduleSettings.decode(row.settings)
    return Standing(
        done_until=row.done_until,
        paused=row.paused,
        reason=settings.reason,
        buffered=row.buffered,
        backlog=settings.backlog,
        running=row.running,
    )
