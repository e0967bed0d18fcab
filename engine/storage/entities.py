"""What is stored of entities besides their messages: their state, and what could not be handled.

Written through ``Commit.states``; read by an entity that comes into memory, and by people.
"""

from dataclasses import dataclass
from datetime import datetime

from engine.core.ids import RunnerId, ShardId, Snowflake


@dataclass(frozen=True, slots=True, kw_only=True)
class StateWrite:
    """The new state of an entity. ``version`` is 1 for the first and grows by one each time."""

    entity_type: str
    entity_id: str
    version: int
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredState:
    """One row of ``entity_states``."""

    entity_type: str
    entity_id: str
    shard: ShardId
    version: int
    payload: bytes
    saved_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityFilter:
    """``after``: only entities behind this one, by type and id: the last of the page before."""

    entity_type: str | None = None
    entity_id: str | None = None
    after: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EntityRow:
    """An entity as others see it. ``waiting`` counts the requests in its inbox, also the one being
    handled; ``oldest`` is the oldest of them. ``version`` is that of its state, if it has one."""

    entity_type: str
    entity_id: str
    shard: ShardId
    runner: RunnerId | None
    waiting: int = 0
    oldest: Snowflake | None = None
    version: int | None = None
    saved_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadFilter:
    """``after``: only requests older than this one: the last of the page before."""

    entity_type: str | None = None
    entity_id: str | None = None
    request_id: Snowflake | None = None
    after: Snowflake | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetter:
    """A persisted request that ended in a ``Defect``; ``error`` is the encoded error."""

    request_id: Snowflake
    shard: ShardId
    entity_type: str
    entity_id: str
    tag: str
    payload: bytes
    error: bytes
