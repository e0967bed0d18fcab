"""What a running step can ask about itself, in its own task or thread."""

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

from engine.workflow.pulse import Pulse
from engine.workflow.token import StepToken


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """The attempt that is running. ``pulse`` and ``token`` are an activity's: a transaction is not
    followed, and ends by itself."""

    execution_id: str
    idempotency_key: str
    attempt: int
    pulse: Pulse | None = None
    token: Callable[[], StepToken] | None = None


current_step: ContextVar[StepContext | None] = ContextVar("outlast_step", default=None)
