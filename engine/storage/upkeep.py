"""What wants looking after in a database that is in use, for ``engine.diagnosis``."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from engine.core.ids import first_snowflake, snowflake_time
from engine.storage.pool import Pool

MANY_DEAD = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bloat:
    """A table with many dead rows. ``automatic``: whether autovacuum looks after it."""

    name: str
    live: int
    dead: int
    vacuumed_at: datetime | None
    automatic: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Stuck:
    """Due requests for one type that nobody has begun with."""

    name: str
    count: int
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Stranger:
    """A login of runners that may not end the sessions of another one, ``judged``."""

    judge: str
    judged: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Upkeep:
    """One look."""

    bloat: Sequence[Bloat] = ()
    stuck: Sequence[Stuck] = ()
    strangers: Sequence[Stranger] = ()


async def look_after(pool: Pool, *, now: datetime, patience: timedelta) -> Upkeep:
    """``patience``: how long a due request may wait without being stuck."""
    before = first_snowflake(now - patience)
    stuck = await pool.fetch("stuck", before, patience)
    return Upkeep(
        bloat=[Bloat(**dict(row.items())) for row in await pool.fetch("bloat", MANY_DEAD)],
        stuck=[
            Stuck(name=row["name"], count=row["count"], since=snowflake_time(row["oldest"]))
            for row in stuck
        ],
        strangers=[Stranger(**dict(row.items())) for row in await pool.fetch("strangers")],
    )
