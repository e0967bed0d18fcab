"""What has become of an execution, for ``match``, and what things look like from outside."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar

from engine.core.errors import ErrorDetails
from engine.core.ids import RunnerId, ShardId, Snowflake
from engine.core.journal import JournalKind, Outcome
from engine.core.reply import Interrupted, Terminated
from engine.core.status import Status

T = TypeVar("T")

__all__ = [
    "DeadLetterInfo",
    "ExecutionInfo",
    "Failed",
    "Interrupted",
    "JournalEvent",
    "Pending",
    "Succeeded",
    "Terminated",
]


@dataclass(frozen=True, slots=True)
class Pending:
    """It has not ended."""

    status: Status


@dataclass(frozen=True, slots=True)
class Succeeded(Generic[T]):
    """It ended with a result."""

    value: T


@dataclass(frozen=True, slots=True)
class Failed:
    """It ended with an error."""

    error: ErrorDetails


@dataclass(frozen=True, slots=True, kw_only=True)
class JournalEvent:
    """One event of an execution's history. Equal events compare and print equal.

    ``ordinal`` counts from 0 per name. ``payload`` is the decoded JSON: a result, an error, a
    value. Times are those of the database; ``started_at`` is when a step's first attempt began.
    """

    run: int
    position: int
    kind: JournalKind
    name: str
    ordinal: int
    attempt: int
    outcome: Outcome
    at: datetime
    started_at: datetime | None = None
    due_at: datetime | None = None
    source: Snowflake | None = None
    payload: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionInfo:
    """An execution as it stands. ``why`` says in one sentence what it waits for or what is wrong,
    and what to do. ``version`` is that of the code it is pinned to: None before a runner has taken
    it up, or the run that it continues as."""

    workflow: str
    id: str
    request_id: Snowflake
    status: Status
    version: int | None
    run: int
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    wake_at: datetime | None
    parent: Snowflake | None
    runner: RunnerId | None
    shard: ShardId
    why: str
    attempts: int = 0
    attributes: Mapping[str, object] = field(default_factory=dict[str, object])
    result: object = None
    error: ErrorDetails | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterInfo:
    """A message to an entity that no delivery could get an answer of. Its caller was given
    ``error``; ``payload`` holds its arguments, decoded. ``sent_at`` is when it was made."""

    request_id: Snowflake
    entity: str
    id: str
    method: str
    payload: object
    error: ErrorDetails
    sent_at: datetime
    shard: ShardId
