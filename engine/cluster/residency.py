"""How many entities, or executions, a runner keeps in memory, and who has to wait for a place.

Shared by the hosts of one runner; each resident and each waiter is told by a call.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Protocol


class Resident(Protocol):
    """Something in memory. Both are called on the host loop and must not block."""

    def evict(self) -> None:
        """Leave memory now; called only while it is idle."""
        ...

    def give_way(self) -> None:
        """Take nothing new, so as to become idle soon: others wait for its place."""
        ...


_WAITING = 1000


class Residency:
    """At most ``limit`` residents. Idle ones make room, the longest idle first; when all are busy
    newcomers wait in the order they came, and for each of them the eldest resident gives way.

    As many may wait at most, or ``waiting``: ``closed`` says that others are to be left where they
    are, and ``reopened`` are called when they can come again.
    """

    def __init__(self, limit: int, *, waiting: int = 0) -> None:
        self.closed = False
        self.reopened: list[Callable[[], None]] = []
        self._limit = limit
        self._most_waiting = waiting or max(limit, _WAITING)
        self._reopening = False
        self._came_free = False
        self._residents: dict[Resident, bool] = {}
        self._idle: OrderedDict[Resident, None] = OrderedDict()
        self._waiting: OrderedDict[Hashable, Callable[[], None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._residents)

    def crowded(self) -> bool:
        """Whether a newcomer would have to wait, and no place has come free since this was asked
        last: many that come and go soon are no crowd."""
        stands, self._came_free = not self._came_free, False
        full = len(self._residents) >= self._limit and not self._idle
        return stands and (full or bool(self._waiting))

    def room(self) -> bool:
        """Whether a newcomer may enter now; an idle resident is evicted for it."""
        if self._waiting:
            return False
        if len(self._residents) >= self._limit and self._idle:
            resident, _ = self._idle.popitem(last=False)
            resident.evict()
        return len(self._residents) < self._limit

    def close_when_crowded(self) -> bool:
        """Whether as many wait as may."""
        # INVARIANT order: it stays closed until the loop's next turn at the least, so that of one
        # newcomer no later message is taken where an earlier one was not.
        self.closed = self.closed or len(self._waiting) >= self._most_waiting
        return self.closed

    def enter(self, resident: Resident) -> None:
        self._residents.setdefault(resident, False)
        self._idle.pop(resident, None)

    def leave(self, resident: Resident) -> None:
        """It is out of memory, or wants to be counted no more."""
        self._idle.pop(resident, None)
        if self._residents.pop(resident, None) is not None:
            self._came_free = True
            self._admit()

    def busy(self, resident: Resident) -> None:
        self._idle.pop(resident, None)

    def idle(self, resident: Resident) -> bool:
        """It has nothing to do. False when it was evicted at once, since others wait."""
        self._came_free = True
        if self._waiting or len(self._residents) > self._limit:
            resident.evict()
            return False
        if resident in self._residents:
            self._residents[resident] = False
            self._idle[resident] = None
        return True

    def wait(self, key: Hashable, admit: Callable[[], None]) -> None:
        """Queue for a place: ``admit`` is called, once, when there is one, and must enter."""
        self._waiting[key] = admit
        if self._idle:  # such as take their time to leave
            resident, _ = self._idle.popitem(last=False)
            resident.evict()
            return
        for resident, giving_way in self._residents.items():
            if not giving_way:
                self._residents[resident] = True
                resident.give_way()
                return

    def forget(self, key: Hashable) -> None:
        """It waits no more."""
        if self._waiting.pop(key, None) is not None:
            self._look()

    def _admit(self) -> None:
        while self._waiting and len(self._residents) < self._limit:
            _, admit = self._waiting.popitem(last=False)
            admit()
            self._look()

    def _look(self) -> None:
        if self.closed and not self._reopening and len(self._waiting) <= self._most_waiting // 2:
            self._reopening = True
            asyncio.get_running_loop().call_soon(self._reopen)

    def _reopen(self) -> None:
        self.closed = self._reopening = False
        for reopened in self.reopened:
            reopened()
