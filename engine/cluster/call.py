"""What is being handled right now, for the code that handles it and for the messages it sends.

Set by ``cluster.handling`` around a handler; read by ``Entity``, ``State`` and outgoing calls.
"""

from contextvars import ContextVar
from dataclasses import dataclass

from engine.core.envelope import EnvelopeRequest


@dataclass(slots=True, kw_only=True)
class Call:
    """One request while it is handled. ``state`` is the working state of its entity, if it has one;
    ``next_sequence`` is the first chunk of a stream that is not stored yet."""

    envelope: EnvelopeRequest
    entity: object
    state: object = None
    next_sequence: int = 0


CURRENT: ContextVar[Call | None] = ContextVar("outlast_call", default=None)


TRACE: ContextVar[str | None] = ContextVar("outlast_trace", default=None)
"""The trace context of work that is no handler: a workflow's step."""

IN_HAND: ContextVar[bool] = ContextVar("outlast_in_hand", default=False)
"""Whether this code runs on behalf of a runner: it may still send while that one stops."""


def current_trace() -> str | None:
    """The W3C trace context of the request being handled, which messages sent by it carry on."""
    call = CURRENT.get()
    return TRACE.get() if call is None else call.envelope.trace
