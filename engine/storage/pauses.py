"""Workflows that are paused as a whole, as they are stored: one row for each that ever was.

Written by clients; runners read it with every heartbeat, and people with an execution.
"""

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """What was last said of a workflow: that it is ``paused``, or that it is not any more; by whom,
    when, and why."""

    workflow: str
    paused: bool
    reason: str
    by: str
    at: datetime
