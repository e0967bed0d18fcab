"""A call as it travels: a request to an entity, the acknowledgement of a chunk, an interrupt.

Made by clients and by executions; saved by ``storage``; delivered by ``cluster``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum

from engine.core.ids import EntityAddress, ShardId, Snowflake
from engine.core.record import record


class Uninterruptible(IntEnum):
    """Whose interrupts a handler ignores."""

    NO = 0
    CLIENT = 1
    SERVER = 2
    BOTH = 3


@record
class ReplyTo:
    """The execution that waits for the exit, and its shard: the exit puts a row in its inbox."""

    execution: Snowflake
    shard: ShardId


@record
class EnvelopeRequest:
    """A request to one entity. ``payload`` is encoded; ``key`` deduplicates it."""

    request_id: Snowflake
    address: EntityAddress
    tag: str
    payload: bytes
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    trace: str | None = None
    persisted: bool = True
    uninterruptible: Uninterruptible = Uninterruptible.NO
    deliver_at: datetime | None = None
    key: str | None = None
    reply_to: ReplyTo | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AckChunk:
    """The consumer of a stream has taken its chunks up to and with ``sequence``."""

    request_id: Snowflake
    id: Snowflake
    sequence: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Interrupt:
    """End the request early; its handler sees a cancellation."""

    request_id: Snowflake
    address: EntityAddress


def dedup_key(kind: str, name: str, key: str) -> str:
    """The text a request is deduplicated by: unambiguous, since kinds and names hold no slash."""
    return f"{kind}/{name}/{key}"
