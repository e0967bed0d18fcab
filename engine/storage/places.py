"""Where a message to an entity, or an item of a queue, is until it has ended: what goes before it.

Read for people, by ``engine.place``.
"""

from dataclasses import dataclass
from datetime import datetime

from engine.core.ids import EntityAddress, RunnerId, Snowflake


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A request that has what another waits for, and the owner of the shard it is on."""

    request_id: Snowflake
    id: str
    tag: str
    runner: RunnerId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A request that has not ended. ``runner`` owns the shard it is on now.

    ``due_at``: it is put off until then. ``ahead`` go before it: messages that came for its entity,
    or items of its line; ``holder`` is the first of those messages. ``key`` is that of an item that
    its queue has taken in: None for all else. An item may be ``admitted``; else ``running`` items
    of its key are, and ``holder`` is the first of these.
    """

    request_id: Snowflake
    address: EntityAddress
    tag: str
    runner: RunnerId | None
    due_at: datetime | None = None
    ahead: int = 0
    key: str | None = None
    admitted: bool = False
    running: int = 0
    holder: Holder | None = None
