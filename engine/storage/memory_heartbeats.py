"""The table ``step_heartbeats`` of the in-memory database.

Changed by ``memory_rows`` on behalf of owners; read by ``memory``.
"""

from collections.abc import Collection, Sequence

from engine.core.ids import Snowflake
from engine.storage.heartbeats import StepHeartbeat, StepId


class MemoryHeartbeats:
    """The last heartbeat of each step that runs."""

    def __init__(self) -> None:
        self._rows: dict[StepId, StepHeartbeat] = {}

    def write(self, heartbeats: Sequence[StepHeartbeat]) -> None:
        for each in heartbeats:
            if each.details is None:
                self._rows.pop(each.step, None)
            else:
                self._rows[each.step] = each

    def forget(self, executions: Collection[Snowflake]) -> None:
        for each in [each for each in self._rows.values() if each.execution in executions]:
            del self._rows[each.step]

    def of(self, executions: Collection[Snowflake]) -> list[StepHeartbeat]:
        """By execution, run, name and ordinal."""
        found = [each for each in self._rows.values() if each.execution in executions]
        return sorted(found, key=lambda each: (each.execution, each.run, each.name, each.ordinal))
