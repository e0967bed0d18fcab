"""Who of the peers is to be declared dead: a judgement over heartbeats, without I/O.

Fed by ``heartbeat`` with each answer of the database; what it condemns is buried there.
"""

from collections.abc import Sequence
from datetime import timedelta

from engine.cluster.view import View
from engine.core.ids import RunnerId


class Judge:
    """Condemns a peer whose heartbeat is older than ``ttl`` by the database's clock.

    A silent peer is evidence only as far as one's own heartbeats got through meanwhile. So it
    condemns nobody before two of its own have come on time, one after the other, nor within one
    ``ttl`` of one that was late (Postgres may have stalled for all), nor within one ``ttl`` of the
    server's start. A peer whose last heartbeat is not known is not stale.
    """

    __slots__ = ("_interval", "_last", "_proof", "_steady_since", "_ttl")

    def __init__(self, *, interval: timedelta, ttl: timedelta) -> None:
        self._interval = interval.total_seconds()
        self._ttl = ttl.total_seconds()
        self._last: View | None = None
        self._steady_since = 0.0
        self._proof = 2 * self._interval

    def condemn(self, view: View, *, server_up: timedelta) -> Sequence[RunnerId]:
        """Take in one's own heartbeat and name the peers to bury."""
        self._note(view)
        if view.received - self._steady_since < self._proof:
            return ()
        if server_up.total_seconds() < self._ttl:
            return ()
        return tuple(
            row.id
            for row in view.runners
            if row.id != view.me
            and row.beat_at is not None
            and (view.now - row.beat_at).total_seconds() > self._ttl
        )

    def _note(self, view: View) -> None:
        last, self._last = self._last, view
        if last is None:
            self._steady_since = view.received
            return
        # Both clocks: the monotonic one stands still while a machine is suspended, and the
        # database's may step, which makes every peer look silent.
        gap = max(view.received - last.received, (view.now - last.now).total_seconds())
        if gap > 2 * self._interval or view.received - view.sent > self._interval:
            self._steady_since = view.received
            self._proof = max(self._ttl, 2 * self._interval)
