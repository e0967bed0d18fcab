"""Who keeps shards from being owned: sessions with their locks that are no live runner's lanes.

Read by ``inspection``; told by ``cluster.ownership`` in the log, by ``why`` and by ``diagnosis``.
"""

from dataclasses import dataclass
from datetime import datetime

from engine.core.ids import ShardId

_NAMED = 5
_FROM_OUTSIDE = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class LockHolder:
    """One such session; without a ``pid`` a prepared transaction. ``address`` is None for a local
    socket, or if this login may not see it."""

    shards: tuple[ShardId, ...]
    pid: int | None
    login: str | None = None
    application: str | None = None
    address: str | None = None
    since: datetime | None = None

    def __str__(self) -> str:
        if self.pid is None:
            return "a prepared transaction"
        login = repr((self.login or "unknown")[:_FROM_OUTSIDE])
        application = repr((self.application or "")[:_FROM_OUTSIDE])
        at = f" at {self.address}" if self.address else ""
        since = f", since {self.since.isoformat(timespec='seconds')}" if self.since else ""
        return f"process {self.pid} (login {login}, application {application}{at}{since})"

    @property
    def named(self) -> str:
        """The shards it holds, the first few of them by name."""
        more = len(self.shards) - _NAMED
        names = ", ".join(str(each) for each in self.shards[:_NAMED])
        return f"{names} and {more} more" if more > 0 else names

    @property
    def fix(self) -> str:
        """How to get rid of it."""
        if self.pid is None:
            return "psql -c 'table pg_prepared_xacts' lists them, rollback prepared ends one"
        return f"psql -c 'select pg_terminate_backend({self.pid})'"
