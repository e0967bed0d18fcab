"""Bury dead peers in the order that a takeover demands, and finish what another burier left.

Works for ``heartbeat``, on its thread and its ``Registry``, between two beats. What it tells lets
``membership`` ring the topology, so that the peers acquire the freed shards at once.
"""

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

from engine.cluster.backoff import Backoff
from engine.cluster.judge import Judge
from engine.cluster.view import View
from engine.core.clock import monotonic
from engine.core.errors import StorageUnavailable
from engine.core.ids import RunnerId
from engine.storage.protocol import Registry

logger: logging.Logger = logging.getLogger(__name__)


class Undertaker:
    """Marks a condemned peer dead, which one peer wins; then ends its sessions until none is left.

    Every peer also looks for takeovers that somebody began and did not finish: at its own start,
    soon after a runner has gone from its view, and now and then. Two that finish the same one do
    no harm.
    """

    def __init__(
        self,
        *,
        me: RunnerId,
        taken_over: Callable[[RunnerId], None],
        interval: timedelta,
        ttl: timedelta,
    ) -> None:
        self._me = me
        self._taken_over = taken_over
        self._interval = interval.total_seconds()
        self._ttl = ttl
        self._judge = Judge(interval=interval, ttl=ttl)
        self._takeovers: dict[RunnerId, _Takeover] = {}
        self._known: frozenset[RunnerId] = frozenset()
        self._audit_due = 0.0

    @property
    def wait(self) -> float:
        """Seconds until ``proceed`` has something to do."""
        waits = (takeover.pace.wait for takeover in self._takeovers.values())
        return min(waits, default=float("inf"))

    def judge(self, view: View, *, server_up: timedelta) -> View:
        """Say in a fresh view who is silent."""
        return replace(view, silent=self._judge.hear(view, server_up=server_up))

    async def look(self, registry: Registry, view: View) -> None:
        """Bury whom the judged view condemns, and audit when it is time to."""
        for peer in self._judge.condemn(view):
            if await registry.bury(peer, by=self._me, ttl=self._ttl):
                logger.warning(
                    "a runner gave no sign of life and was declared dead", extra=self._extra(peer)
                )
                self._begin(peer)
        if self._audit_is_due(view):
            for dead in await registry.unburied():
                self._begin(dead)

    async def proceed(self, registry: Registry) -> bool:
        """End sessions of the dead; whether the last session of one has ended."""
        freed = False
        for dead, takeover in list(self._takeovers.items()):
            if takeover.pace.wait > 0:
                continue
            takeover.pace.failed()
            try:
                left = await registry.end_sessions(dead)
            except StorageUnavailable as error:  # a heartbeat that fails too will say so itself
                self._complain(dead, takeover, error)
                continue
            if left:
                self._complain(dead, takeover, f"{left} sessions are left")
                continue
            # INVARIANT takeover-order: marked dead, then no session left, only then rung.
            del self._takeovers[dead]
            self._taken_over(dead)
            freed = True
        return freed

    def _audit_is_due(self, view: View) -> bool:
        present = frozenset(row.id for row in view.runners)
        if self._known - present:
            # Whoever buried it gets an interval to finish by himself.
            self._audit_due = min(self._audit_due, view.received + self._interval)
        self._known = present
        if view.received < self._audit_due:
            return False
        self._audit_due = view.received + self._ttl.total_seconds() * random.uniform(3.0, 4.0)
        return True

    def _begin(self, dead: RunnerId) -> None:
        if dead not in self._takeovers and dead != self._me:
            self._takeovers[dead] = _Takeover()

    def _complain(self, dead: RunnerId, takeover: "_Takeover", why: object) -> None:
        if takeover.reported or monotonic() - takeover.since < self._ttl.total_seconds():
            return
        takeover.reported = True
        logger.error(
            "the sessions of a dead runner do not end, so its shards stay without an owner (%s);"
            " let runners share a login, or grant each pg_signal_backend: see 'outlast grants'",
            why,
            extra=self._extra(dead),
        )

    def _extra(self, peer: RunnerId) -> dict[str, object]:
        return {"runner": str(self._me), "peer": str(peer)}


@dataclass(slots=True)
class _Takeover:
    """A dead runner whose sessions have not been seen to end."""

    since: float = field(default_factory=monotonic)
    pace: Backoff = field(
        default_factory=lambda: Backoff(
            initial=timedelta(milliseconds=10), maximum=timedelta(seconds=1)
        )
    )
    reported: bool = False
