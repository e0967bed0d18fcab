"""Which of the suspects, that may have killed their process, may run now: in ever smaller company.

``cluster.suspects`` asks for messages, ``workflow.resident`` for executions. When a process dies,
what was on trial in it is blamed, so that after a few deaths only the killer is left.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import count
from typing import Final

from engine.core.clock import Alarm, Clock

_COMPANY: Final = {3: 64, 4: 16, 5: 4}
_PATIENCE: Final = timedelta(minutes=1)


class Trials:
    """The trials of one process, over all its lanes.

    How many may be on trial at once depends on the failures of the worst of them: 64 with three,
    16 with four, 4 with five; who has more is alone, and so is who has one left of
    ``max_deliveries``. The least suspect go first. A trial ends when the work does; when one has
    lasted for a minute, it keeps only those from theirs who would have to be alone as well.
    """

    def __init__(
        self, *, max_deliveries: int, clock: Clock, soon: Callable[[Callable[[], None]], object]
    ) -> None:
        self._last_chance = max_deliveries - 1
        self._clock = clock
        self._soon = soon
        self._beginning = False
        self._numbers = count()
        self._waiting: dict[object, Callable[[], None]] = {}
        self._order: list[tuple[int, int, object]] = []
        self._on_trial: dict[object, _Trial] = {}
        self._alarm: Alarm | None = None

    def ask(self, suspect: object, failures: int, go: Callable[[], None]) -> None:
        """Have ``go`` called when the suspect may run, not at once; ``done`` must follow."""
        self._waiting[suspect] = go
        heapq.heappush(self._order, (failures, next(self._numbers), suspect))
        self._begin_soon()

    def done(self, suspect: object) -> None:
        """It has ended, or is here no more; of no effect on one that is not known."""
        waited = self._waiting.pop(suspect, None)
        if waited is not None or self._on_trial.pop(suspect, None) is not None:
            self._begin_soon()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._on_trial)

    def _begin_soon(self) -> None:
        """Those who ask in the same turn are put in order first."""
        if not self._beginning:
            self._beginning = True
            self._soon(self._begin)

    def _begin(self) -> None:
        """Begin all trials that may begin."""
        self._beginning = False
        while self._order:
            failures, _, suspect = self._order[0]
            if suspect in self._waiting and not self._has_room(failures):
                break
            heapq.heappop(self._order)
            go = self._waiting.pop(suspect, None)
            if go is not None:
                until = self._clock.now() + _PATIENCE
                self._on_trial[suspect] = _Trial(failures=failures, until=until)
                go()
        self._arm()

    def _has_room(self, failures: int) -> bool:
        # INVARIANT alone: who begins to be tried alone shares the process with no suspect but such
        # as have not killed it for a minute; so a death that soon follows is its own.
        now, alone = self._clock.now(), self._company(failures) == 1
        others = [
            trial
            for trial in self._on_trial.values()
            if trial.until > now or (alone and self._company(trial.failures) == 1)
        ]
        worst = max((trial.failures for trial in others), default=0)
        return len(others) < self._company(max(failures, worst))

    def _company(self, failures: int) -> int:
        return 1 if failures >= self._last_chance else _COMPANY.get(failures, 1)

    def _arm(self) -> None:
        """Look again when the patience with one of those on trial ends."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        now = self._clock.now()
        ends = [trial.until for trial in self._on_trial.values() if trial.until > now]
        if self._waiting and ends:
            self._alarm = self._clock.call_at(min(ends), self._look)

    def _look(self) -> None:
        self._alarm = None
        self._begin()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """``until``: so long others wait for it."""

    failures: int
    until: datetime
