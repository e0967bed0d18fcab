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
class Pruned:
    """How many were deleted, and the last of those looked at if there may be more."""

    count: int
    last: Snowflake | None
