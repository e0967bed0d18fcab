"""What a running step can ask about itself, in its own task or thread."""

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """The attempt that is running."""

    execution_id: str
    idempotency_key: str
    attempt: int


current_step: ContextVar[StepContext | None] = ContextVar("outlast_step", default=None)
