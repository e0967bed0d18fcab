"""How many entities, or executions, a runner keeps in memory, and who has to wait for a place.

Shared by the hosts of one runner; each resident and each waiter is told by a call.
"""

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


class Residency:
    """At most ``limit`` residents. Idle ones make room, the longest idle first; when all are busy
    newcomers wait in the order they came, and for each of them the eldest resident gives way."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._residents: dict[Resident, bool] = {}
        self._idle: OrderedDict[Resident, None] = OrderedDict()
        self._waiting: OrderedDict[Hashable, Callable[[], None]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._residents)

    def room(self) -> bool:
        """Whether a newcomer may enter now; an idle resident is evicted for it."""
        if self._waiting:
            return False
        if len(self._residents) >= self._limit and self._idle:
            resident, _ = self._idle.popitem(last=False)
            resident.evict()
        return len(self._residents) < self._limit

    def enter(self, resident: Resident) -> None:
        self._residents.setdefault(resident, False)
        self._idle.pop(resident, None)

    def leave(self, resident: Resident) -> None:
        """It is out of memory, or wants to be counted no more."""
        self._idle.pop(resident, None)
        if self._residents.pop(resident, None) is not None:
            self._admit()

    def busy(self, resident: Resident) -> None:
        self._idle.pop(resident, None)

    def idle(self, resident: Resident) -> bool:
        """It has nothing to do. False when it was evicted at once, since others wait."""
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
        self._waiting.pop(key, None)

    def _admit(self) -> None:
        while self._waiting and len(self._residents) < self._limit:
            _, admit = self._waiting.popitem(last=False)
            admit()
