"""One row of an execution's journal: something that happened to its body, in the order it saw it.

Written by ``workflow.execution`` through the owner's lane; read by replay and by people.
"""

from datetime import datetime
from enum import IntEnum

from engine.core.ids import Snowflake
from engine.core.record import record


class JournalKind(IntEnum):
    """What happened."""

    STEP = 1
    """An activity, transaction or call ended: the body got its result or error."""
    ATTEMPT = 2
    """An attempt of a step failed and another follows at ``due_at``; the body saw nothing."""
    TIMER = 3
    """A timer fired; ``due_at`` is its deadline."""
    RESOLVED = 4
    """A deferred was resolved or rejected from outside."""
    CALL = 5
    """A request to an entity, a child or another execution left; ``source`` is its request id. Its
    reply is a STEP. One that failed did not leave, since its body ended in that turn."""
    INTERRUPT = 6
    """Somebody asked the execution to end early; the payload is the reason."""
    SIGNAL = 7
    """A signal came; one that failed could not be read, and the body saw nothing of it."""
    UPDATE = 8
    """An update came and was let pass."""
    ANSWER = 9
    """An update was answered; ``source`` is its request id. What was sent is the reply."""
    CONTINUED = 10
    """The run before continued as this one; the payload is its request, ``ordinal`` the version of
    the code that the run before was of."""
    TERMINATED = 11
    """It was terminated; the payload is the reason."""
    COMPENSATING = 12
    """Its compensations begin."""
    REPAIRED = 13
    """This run, or execution, goes on with a copy of another's journal; the payload says whose."""
    POSTPONED = 14
    """An attempt has left its end to whoever has its token, until ``due_at`` if it has a timeout.
    What they say is an ATTEMPT or a STEP, whose ``source`` is their message."""
    PAUSED = 15
    """From here on nothing of it is started; ``name`` says whether it or its workflow is paused."""
    RESUMED = 16
    """It, or its workflow, is not paused any more."""
    RETRIED = 17
    """It was blocked, and somebody asked it to go on from where it stands."""
    PATCHED = 18
    """``patched()`` was asked for a change for the first time; the payload is its answer, true or
    false, in this whole run."""


class Outcome(IntEnum):
    """How it ended."""

    OK = 0
    FAILED = 1
    CANCELLED = 2
    TIMED_OUT = 3
    INTERRUPTED = 4
    """The child that was joined was."""
    TERMINATED = 5


@record
class JournalRow:
    """One event. (execution, run, position) is its key; positions grow, with gaps allowed.

    ``name`` and ``ordinal`` say which step, timer or deferred of the body it belongs to, ``digest``
    what that was called with. ``at`` is the workflow's clock from this event on; ``started_at``
    when the step's first attempt began. ``source`` is the request it came from or went out as.
    """

    execution: Snowflake
    run: int
    position: int
    kind: JournalKind
    name: str
    ordinal: int
    at: datetime
    attempt: int = 1
    outcome: Outcome = Outcome.OK
    digest: int = 0
    started_at: datetime | None = None
    due_at: datetime | None = None
    source: Snowflake | None = None
    payload: bytes = b""
