"""What the owner of a cron does now: which instants run, which are left out, which wait.

Pure. ``cluster.cron_keeper`` asks with what it knows of the cron and writes down the answer.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import islice, takewhile

from engine.cluster.timetable import Overlap, Rules
from engine.core.ids import Snowflake
from engine.storage.schedules import FireOutcome

LIMIT = 500
"""So many instants are decided at a time."""
ON_TIME = timedelta(seconds=10)
"""What is noticed within this time of its instant was not missed: no clock, busy machine or
hand-over is more exact."""
_TICK = timedelta(microseconds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Instants to make up for, both ends included."""

    first: datetime
    last: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where a cron stands.

    Every instant up to and with ``done_until`` has been dealt with, but for the one ``buffered``
    and those of the ``backlog``. ``running`` are its requests that are not known to have ended.
    """

    done_until: datetime
    paused: bool = False
    reason: str = ""
    buffered: datetime | None = None
    backlog: tuple[Span, ...] = ()
    running: tuple[Snowflake, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What becomes of one instant. ``manual``: it was triggered or made up for."""

    instant: datetime
    outcome: FireOutcome
    manual: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """``decisions`` in order, and the standing after them (without the requests that start).

    ``interrupt``: those that run are to be ended. ``next_at`` is the first instant to come.
    ``more``: ask again at once, there was too much for one plan.
    """

    decisions: tuple[Decision, ...]
    standing: Standing
    interrupt: bool
    next_at: datetime | None
    more: bool

    @property
    def starts(self) -> list[Decision]:
        return [each for each in self.decisions if each.outcome is FireOutcome.STARTED]


def plan(
    rules: Rules,
    standing: Standing,
    now: datetime,
    *,
    asked: Iterable[datetime] = (),
    begun: Collection[datetime] = (),
    limit: int = LIMIT,
) -> Plan:
    """Deal with all that is due by now: the buffered instant, the scheduled ones in order, those
    ``asked`` for, and then the backlog. What has ``begun`` is started, whatever speaks against it.
    """
    making = _Making(rules, standing, now, begun)
    making.take_buffered()
    more = False if standing.paused else making.take_due(limit)
    for instant in asked:
        making.take_asked(instant)
    making.replace_running()
    more = making.take_backlog(limit) or more
    return making.plan(more=more)


class _Making:
    """A plan in the making."""

    def __init__(
        self, rules: Rules, standing: Standing, now: datetime, begun: Collection[datetime]
    ) -> None:
        self.rules = rules
        self.now = now
        self._begun = begun
        self._standing = standing
        self._done = standing.done_until
        self._buffered = standing.buffered
        self._backlog = standing.backlog
        self._busy = bool(standing.running)
        self._started: set[datetime] = set()
        self._decisions: list[Decision] = []

    # --- what there is to decide ------------------------------------------------------------------

    def take_buffered(self) -> None:
        """The instant that waited runs first, once it can. Under a pause nothing waits but what
        somebody asked for."""
        overlap, waits = self.rules.overlap, self._buffered
        if self._standing.paused and waits is not None and waits in self.rules.instants:
            self._buffered = None
            self._leave_out(waits, FireOutcome.OVERLAPPED)
        elif overlap is Overlap.ALLOW or (overlap is not Overlap.CANCEL and not self._busy):
            self._begin_buffered()

    def take_due(self, limit: int) -> bool:
        """The scheduled instants that have come, in order; whether there are more of them."""
        instants, oldest = self.rules.instants, self.now - max(self.rules.catch_up, ON_TIME)
        # Of those too late to be caught up with only so many are noted one by one, so that a long
        # sleep does not cost as long an awakening.
        missed = list(islice(instants.between(self._done + _TICK, oldest - _TICK), limit))
        for instant in missed:
            self._leave_out(instant, FireOutcome.MISSED)
        if missed:
            self._done = oldest - _TICK
        due = takewhile(lambda at: at <= self.now, instants.after(self._done))
        for count, instant in enumerate(islice(due, limit + 1)):
            if count == limit:
                return True
            self._done = instant
            self.decide(instant)
        return False

    def take_backlog(self, limit: int) -> bool:
        """Instants to make up for: all at once where they may overlap, else one after the other."""
        backlog, taken = list(self._backlog), 0
        allow = self.rules.overlap is Overlap.ALLOW
        while backlog and taken < limit and (allow or not (self._busy or self._buffered)):
            span = backlog.pop(0)
            instant = next(self.rules.instants.between(span.first, span.last), None)
            if instant is not None:
                backlog.insert(0, Span(first=instant + _TICK, last=span.last))
                self._start(instant, manual=True)
                taken += 1
        self._backlog = tuple(backlog)
        return bool(backlog) and allow

    def take_asked(self, instant: datetime) -> None:
        """An instant that somebody asked for, perhaps again."""
        if instant != self._buffered:
            self.decide(instant, manual=True)

    # --- deciding ---------------------------------------------------------------------------------

    def decide(self, instant: datetime, *, manual: bool = False) -> None:
        """An instant has come (or was asked for); what of it, given what runs and waits."""
        match self.rules.overlap:
            case _ if instant in self._begun:
                self._start(instant, manual=manual)
            case Overlap.CANCEL:
                if self._buffered is not None:
                    self._leave_out(self._buffered, FireOutcome.OVERLAPPED)
                self._buffered = instant
            case Overlap.BUFFER_ONE if self._busy and self._buffered is None:
                self._buffered = instant
            case Overlap.SKIP | Overlap.BUFFER_ONE if self._busy:
                self._leave_out(instant, FireOutcome.OVERLAPPED, manual=manual)
            case _:
                self._begin(instant, manual=manual)

    def replace_running(self) -> None:
        """Where a new run ends the old one: of all that came meanwhile the last one runs."""
        if self.rules.overlap is Overlap.CANCEL and not self._busy:
            self._begin_buffered()

    def _begin_buffered(self) -> None:
        instant, self._buffered = self._buffered, None
        if instant is not None:
            self._begin(instant, manual=instant not in self.rules.instants)

    def _begin(self, instant: datetime, *, manual: bool) -> None:
        limit = self.rules.skip_if_older_than
        if not manual and limit is not None and self.now - instant > limit:
            self._leave_out(instant, FireOutcome.TOO_OLD)
        else:
            self._start(instant, manual=manual)

    def _leave_out(self, instant: datetime, outcome: FireOutcome, *, manual: bool = False) -> None:
        if instant in self._begun:
            self._start(instant, manual=manual)
        else:
            self._note(instant, outcome, manual=manual)

    def _start(self, instant: datetime, *, manual: bool) -> None:
        self._busy = True
        if instant not in self._started:
            self._started.add(instant)
            self._note(instant, FireOutcome.STARTED, manual=manual)

    def _note(self, instant: datetime, outcome: FireOutcome, *, manual: bool = False) -> None:
        self._decisions.append(Decision(instant=instant, outcome=outcome, manual=manual))

    def plan(self, *, more: bool) -> Plan:
        paused = self._standing.paused
        return Plan(
            decisions=tuple(self._decisions),
            standing=replace(
                self._standing,
                done_until=self._done,
                buffered=self._buffered,
                backlog=self._backlog,
            ),
            interrupt=self.rules.overlap is Overlap.CANCEL and self._buffered is not None,
            next_at=None if paused else self.rules.instants.next(self._done),
            more=more,
        )
