"""The tables ``schedules`` and ``schedule_fires`` of the in-memory database.

Changed by ``memory_rows`` on behalf of owners; read by ``memory``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from heapq import nlargest

from engine.core.ids import ShardId, Snowflake
from engine.storage.memory_shard import MemoryShard
from engine.storage.schedules import Fire, FireOutcome, ScheduleRow


class MemorySchedules:
    """Schedules by name, and the instants of each that were dealt with."""

    def __init__(self, shards: Mapping[ShardId, MemoryShard]) -> None:
        self._shards = shards
        self._rows: dict[str, ScheduleRow] = {}
        self._fires: dict[str, dict[datetime, Fire]] = {}

    def write(self, row: ScheduleRow) -> None:
        self._rows[row.name] = row

    def running(self) -> set[Snowflake]:
        """The requests of runs that crons wait for."""
        return {each for row in self._rows.values() for each in row.running}

    def fire(self, fire: Fire) -> None:
        """Note what became of an instant; the first note stays, but for one that was left out and
        is started later."""
        fires = self._fires.setdefault(fire.schedule, {})
        first = fires.setdefault(fire.instant, fire)
        if fire.outcome is FireOutcome.STARTED and first.outcome is not FireOutcome.STARTED:
            fires[fire.instant] = fire

    def get(self, names: Sequence[str] | None) -> list[ScheduleRow]:
        """By name, each with the runner that owns its shard now."""
        wanted = self._rows.keys() if names is None else self._rows.keys() & set(names)
        rows = [self._rows[name] for name in sorted(wanted)]
        return [replace(row, runner=self._shards[row.shard].runner) for row in rows]

    def fires(self, schedule: str, limit: int) -> list[Fire]:
        """The latest, youngest first."""
        fires = self._fires.get(schedule, {})
        return [fires[instant] for instant in nlargest(limit, fires)]
