"""A step that a body has asked for: attempts to run here, or a request that leaves to be answered.

Made by ``workflow.body``; started by ``workflow.outgoing``; ended by an event.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime
from types import CodeType
from typing import Any, Protocol

from engine.core.envelope import ReplyTo
from engine.core.errors import ErrorDetails, StepFailed, StepTimedOut
from engine.core.ids import Snowflake
from engine.core.journal import Outcome
from engine.core.retry import RetryPolicy
from engine.storage.protocol import InboxRow, SaveRequest
from engine.workflow.activity import StepDefinition, StepKind

StepKey = tuple[str, int]


class Call(Protocol):
    """What leaves a body as a stored request and comes back as an answer."""

    @property
    def name(self) -> str:
        """Its name as a step."""
        ...

    @property
    def group(self) -> str:
        """The shard group that it goes to."""
        ...

    @property
    def shared(self) -> bool:
        """Whether somebody else may have stored the same request, whose reply is this one's too."""
        ...

    @property
    def told(self) -> bool:
        """Whether it is answered by what becomes of it in storage, not by a reply."""
        ...

    @property
    def waits(self) -> str:
        """What the body waits for, in words."""
        ...

    def request(
        self,
        request_id: Snowflake,
        *,
        shards_in: Callable[[str], int],
        payload: bytes,
        reply_to: ReplyTo,
        trace: str | None,
    ) -> SaveRequest:
        """The request to store. The same again when it is sent again."""
        ...

    def decode(self, value: bytes) -> object:
        """The answer, of its type; ``InvalidPayload``."""
        ...

    def error(self, step: "Step", outcome: Outcome, details: ErrorDetails) -> BaseException:
        """What the body sees when it did not end well."""
        ...


class Step:
    """One step the body has asked for and not yet seen the end of.

    ``details`` is what its attempts reported last (empty: nothing), None before that is known;
    ``reported``: that is stored.
    ``resent``: its request had left before this process read the execution.
    ``followed``: who answers it goes on, and its exit will come through the inbox.
    ``postponed``: its attempt has left its end to somebody outside, until ``due_at`` if that is
    set; ``completion`` is what they said before the attempt had got so far.
    """

    __slots__ = (
        "args",
        "attempt",
        "attempt_at",
        "call",
        "completion",
        "definition",
        "details",
        "digest",
        "due_at",
        "followed",
        "future",
        "kwargs",
        "mark",
        "name",
        "ordinal",
        "payload",
        "postponed",
        "reported",
        "request_id",
        "resent",
        "retry_at",
        "started_at",
        "task",
        "transaction",
        "where",
    )

    def __init__(
        self,
        *,
        name: str,
        ordinal: int,
        payload: bytes,
        digest: int,
        future: asyncio.Future[Any],
        where: tuple[CodeType, int] | None,
        definition: StepDefinition | None = None,
        call: Call | None = None,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> None:
        self.name: str = name
        self.ordinal: int = ordinal
        self.payload: bytes = payload
        self.digest: int = digest
        self.future: asyncio.Future[Any] = future
        self.where: tuple[CodeType, int] | None = where
        self.definition: StepDefinition | None = definition
        self.call: Call | None = call
        self.args: tuple[object, ...] = args
        self.kwargs: dict[str, object] = kwargs or {}
        kind = None if definition is None else definition.kind
        self.transaction: bool = kind is StepKind.TRANSACTION
        self.attempt: int = 1
        self.mark: int = 0
        self.retry_at: datetime | None = None
        self.attempt_at: datetime | None = None
        self.details: bytes | None = None
        self.reported: bool = False
        self.postponed: bool = False
        self.due_at: datetime | None = None
        self.completion: InboxRow | None = None
        self.started_at: datetime | None = None
        self.request_id: Snowflake | None = None
        self.resent: bool = False
        self.followed: bool = False
        self.task: asyncio.Task[None] | None = None

    @property
    def key(self) -> StepKey:
        return self.name, self.ordinal

    @property
    def retry(self) -> RetryPolicy:
        return self.definition.retry if self.definition is not None else RetryPolicy()

    @property
    def line(self) -> str:
        """The line of user code that asked for the step."""
        if self.where is None:
            return "unknown line"
        return line_of(*self.where)

    def __str__(self) -> str:
        return f"step {self.name}#{self.ordinal + 1}"


def line_of(code: CodeType, line: int) -> str:
    """A line of user code, for people."""
    return f"{code.co_filename}:{line} in {code.co_qualname}"


def step_error(step: Step, outcome: Outcome, details: ErrorDetails) -> StepFailed:
    """What the body sees of a step that failed."""
    kind = StepTimedOut if outcome is Outcome.TIMED_OUT else StepFailed
    attempts = f" after {step.attempt} attempts" if step.attempt > 1 else ""
    return kind(f"{step} failed{attempts}: {details}", details)
