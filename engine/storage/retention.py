"""What is to be pruned, as storages are asked for it.

From ``workflow.pruner`` and the CLI; a storage leaves out by itself what somebody has still to hear
of.
"""

from dataclasses import dataclass
from datetime import datetime

from engine.core.ids import Snowflake
from engine.core.status import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """Executions of a workflow that ended so, until a time; later than ``after`` only."""

    workflow: str
    status: Status
    until: datetime
    after: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTerm:
    """Requests to entities of a group that were due until a time; dead letters, until another."""

    group: str
    until: datetime
    failed_until: datetime

    @property
    def last(self) -> datetime:
        """After which none of them was made."""
        return max(self.until, self.failed_until)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pruned:
    """How many were deleted, and the last of those looked at if there may be more."""

    count: int
    last: Snowflake | None
