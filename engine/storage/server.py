"""What a server says of itself, for ``engine.diagnosis``; needs no schema and no privilege."""

from dataclasses import dataclass
from datetime import datetime

from engine.storage.pool import Pool


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerFacts:
    """One look at the server. None: there is none, or this login may not see it."""

    version: str
    now: datetime
    started_at: datetime
    standby: bool
    read_only: bool
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    connections: int
    """How many clients that are not superusers may connect."""
    connected: int
    lock_slots: int
    oldest_transaction: datetime | None = None
    oldest_prepared: datetime | None = None
    idle_slot: str | None = None
    """A replication slot that nobody reads and that keeps old rows from being removed."""


async def server_facts(pool: Pool) -> ServerFacts:
    """Ask the server; ``StorageUnavailable`` when it does not answer."""
    row = (await pool.fetch("server"))[0]
    return ServerFacts(**dict(row.items()))
