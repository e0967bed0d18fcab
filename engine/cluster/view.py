"""The runners of a cluster as one heartbeat saw them.

Made by ``heartbeat`` from the database's answer; read by ``ownership`` to decide who owns what.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from engine.core.ids import RunnerId
from engine.storage.pauses import Pause
from engine.storage.protocol import RunnerRow

Electorate = tuple[tuple[RunnerId, float, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All runners not dead at ``now`` (the database's clock), ``me`` among them.

    ``sent`` and ``received`` are this process's monotonic clock around the heartbeat, in seconds.
    ``silent`` are runners whose heartbeat is overdue: not judged yet, but perhaps gone, in which
    case their locks are free. ``post``: volatile messages wait for this runner.
    ``pauses`` are the workflows that are paused as a whole, or were.
    """

    me: RunnerId
    now: datetime
    runners: tuple[RunnerRow, ...]
    sent: float
    received: float
    silent: frozenset[RunnerId] = frozenset()
    post: bool = False
    pauses: Mapping[str, Pause] = field(default_factory=dict[str, Pause])

    def candidates(self, group: str) -> tuple[RunnerRow, ...]:
        """Who may be given shards of the group: its runners that are not draining, by id."""
        serving = [row for row in self.runners if not row.draining and group in row.groups]
        return tuple(sorted(serving, key=lambda row: row.id))

    @property
    def serving(self) -> bool:
        """Whether this runner itself is a candidate."""
        return any(row.id == self.me and not row.draining for row in self.runners)

    @property
    def electorate(self) -> Electorate:
        """All that assignments depend on: two views with equal electorates assign alike."""
        live = [row for row in self.runners if not row.draining]
        return tuple(sorted((row.id, row.weight, tuple(sorted(row.groups))) for row in live))
