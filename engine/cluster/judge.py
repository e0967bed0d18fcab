"""What a peer's silence proves: a judgement over heartbeats, without I/O.

Fed by ``undertaker`` with each answer of the database; what it condemns is buried there.
"""

from datetime import timedelta

from engine.cluster.view import View
from engine.core.ids import RunnerId

_OVERDUE = 1.5


class Judge:
    """Condemns a peer whose heartbeat is older than ``ttl`` by the database's clock; calls one
    silent when its heartbeat is older than one and a half intervals.

    A silent peer is evidence only as far as one's own heartbeats got through meanwhile. So nobody
    is silent before two of one's own have come on time, one after the other, nor within one
    ``ttl`` of one that was late (Postgres may have stalled for all), nor within one ``ttl`` of the
    server's start. A peer whose last heartbeat is not known is not silent.
    """

    __slots__ = ("_interval", "_last", "_proof", "_steady_since", "_ttl")

    def __init__(self, *, interval: timedelta, ttl: timedelta) -> None:
        self._interval = interval.total_seconds()
        self._ttl = ttl.total_seconds()
        self._last: View | None = None
        self._steady_since = 0.0
        self._proof = 2 * self._interval

    def hear(self, view: View, *, server_up: timedelta) -> frozenset[RunnerId]:
        """Take in one's own heartbeat; who is silent."""
        self._note(view)
        if view.received - self._steady_since < self._proof:
            return frozenset()
        if server_up.total_seconds() < self._ttl:
            return frozenset()
        return self._older(view, _OVERDUE * self._interval)

    def condemn(self, view: View) -> frozenset[RunnerId]:
        """Of those that the view calls silent, who is to be buried."""
        return view.silent & self._older(view, self._ttl)

    def _older(self, view: View, seconds: float) -> frozenset[RunnerId]:
        return frozenset(
            row.id
            for row in view.runners
            if row.id != view.me
            and row.beat_at is not None
            and (view.now - row.beat_at).total_seconds() > seconds
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
