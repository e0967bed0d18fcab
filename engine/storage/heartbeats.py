"""Heartbeats of steps as rows: what a running step last reported, for its next attempt.

Written by the owner of the execution's shard through ``Commit``; read by it when the step starts
again somewhere else, and by people.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from engine.core.codec import digest
from engine.core.ids import Snowflake

StepId = tuple[Snowflake, int, int]
"""Execution, run, and a number that stands for the step within them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepHeartbeat:
    """One row of ``step_heartbeats``: of each step the last. ``details`` is JSON, or empty when it
    has reported none; None says that the step has ended, which removes its row."""

    execution: Snowflake
    run: int
    name: str
    ordinal: int
    attempt: int
    at: datetime
    details: bytes | None

    @property
    def step(self) -> StepId:
        """Names may be too long for an index."""
        return self.execution, self.run, digest(f"{self.name}#{self.ordinal}".encode())


def latest(heartbeats: Iterable[StepHeartbeat]) -> list[StepHeartbeat]:
    """The last of each step."""
    return list({each.step: each for each in heartbeats}.values())
