"""An execution's journal as a timeline: what ran when, for how long, how often, and how it ended.

From the events of ``admin.history``; on to ``drawing``, which puts the lines on a terminal.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import cast

from cli.durations import ago, brief, readable
from cli.output import error_text, to_json
from engine.core.ids import Snowflake
from engine.core.journal import JournalKind, Outcome
from engine.core.outcome import JournalEvent

_WAITS = re.compile(r"waits for ")
_BETWEEN = re.compile(r", (?=(?:deferred|the|attempt|step|child|a) )")
_REPLY = re.compile(r"the reply of (.+?)/(.*) (\S+)")
_LAST = 1 << 31
_RETRY = re.compile(r"attempt \d+ of (?:step )?(\S+?)(?:#\d+)? due .*")

_COMPLETION = re.compile(r"the completion of step (\S+?)(?:#\d+)?(?: due .*)?")


class Mark(Enum):
    """How a line ended, or that it has not."""

    OK = "ok"
    FAILED = "failed"
    CANCELLED = "cancelled"
    PENDING = "pending"


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a line's bar: at work, or waiting for the next attempt."""

    begin: datetime
    end: datetime
    works: bool


@dataclass(slots=True, kw_only=True)
class Line:
    """One step, call, timer, message or wait. ``note`` is its result, error or what it awaits."""

    name: str
    begin: datetime
    run: int
    position: int = 0
    """Where the journal first speaks of it."""
    end: datetime | None = None
    mark: Mark = Mark.PENDING
    note: str = ""
    attempts: int = 0
    spans: list[Span] = field(default_factory=list[Span])
    tries: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """The failed attempts that another followed: number and error."""

    @property
    def resumed(self) -> datetime:
        """When the attempt after the last span began."""
        return self.spans[-1].end if self.spans else self.begin


class Timeline:
    """Collects events into lines. ``targets``: the entity that each call's request went to."""

    def __init__(self, *, now: datetime, targets: Mapping[Snowflake, str]) -> None:
        self._now = now
        self._targets = targets
        self._lines: dict[tuple[int, str, int], Line] = {}
        self._instants: list[Line] = []

    def add(self, event: JournalEvent) -> None:
        """The next event of the journal."""
        match event.kind:
            case JournalKind.CALL if event.outcome is Outcome.OK:
                self._line(event, begin=event.at).note = "no reply yet"
            case JournalKind.ATTEMPT:
                self._attempt(event)
            case JournalKind.POSTPONED:
                self._postponed(event)
            case JournalKind.STEP | JournalKind.CALL:
                self._step(event)
            case JournalKind.TIMER:
                self._instant(event, "timer", "fired")
            case _:
                self._message(event)

    def lines(self, *, waiting: str | None, run: int, since: datetime) -> list[Line]:
        """All lines, by when they began, those that have not ended last. ``waiting``: what the
        execution's row says it waits for; what of it the journal does not show is a pending line of
        ``run`` that began at ``since``."""
        found = [*self._lines.values(), *self._instants]
        pending = {line.name for line in found if line.mark is Mark.PENDING}
        for name, note in self._awaited(waiting, pending):
            found.append(Line(name=name, begin=since, run=run, position=_LAST, note=note))
        return sorted(found, key=_order)

    def _line(self, event: JournalEvent, *, begin: datetime) -> Line:
        target = self._targets.get(event.source) if event.source is not None else None
        name = event.name
        if event.kind is JournalKind.CALL:
            entity_type, _, method = name.partition(".")
            name = f"call {entity_type}/{target} {method}" if target else f"call {name}"
        key = event.run, event.name, event.ordinal
        line = Line(name=name, begin=begin, run=event.run, position=event.position)
        return self._lines.setdefault(key, line)

    def _attempt(self, event: JournalEvent) -> None:
        line = self._line(event, begin=event.started_at or event.at)
        due = max(event.due_at or event.at, event.at)
        line.spans.append(Span(begin=min(line.resumed, event.at), end=event.at, works=True))
        line.spans.append(Span(begin=event.at, end=due, works=False))
        line.attempts = event.attempt
        error = f"{_error(event.payload)}, again after {brief(due - event.at)}"
        line.tries.append((event.attempt, error))
        line.note = f"attempt {event.attempt + 1} is due {ago(due, self._now)}"
        if due <= self._now:
            line.note = f"attempt {event.attempt + 1} is due since {brief(self._now - due)}"

    def _postponed(self, event: JournalEvent) -> None:
        line = self._line(event, begin=event.started_at or event.at)
        line.attempts = event.attempt
        due = "" if event.due_at is None else f", due {ago(event.due_at, self._now)}"
        line.note = f"to be completed from outside{due}"

    def _step(self, event: JournalEvent) -> None:
        line = self._line(event, begin=event.started_at or event.at)
        line.spans.append(Span(begin=min(line.resumed, event.at), end=event.at, works=True))
        line.end = event.at
        line.attempts = event.attempt
        line.mark = _mark(event.outcome)
        match line.mark:
            case Mark.OK:
                line.note = _value(event.payload)
            case Mark.CANCELLED:
                line.note = "cancelled by the body"
            case Mark.FAILED | Mark.PENDING:
                line.note = _error(event.payload)

    def _message(self, event: JournalEvent) -> None:
        """What came from outside, and what was answered."""
        failed, name = event.outcome is Outcome.FAILED, event.name
        match event.kind:
            case JournalKind.RESOLVED if failed:
                reason = _error(event.payload).partition(": ")[2]
                self._instant(event, f"deferred {name}", f"rejected: {reason}")
            case JournalKind.RESOLVED:
                self._instant(event, f"deferred {name}", f"resolved: {_value(event.payload)}")
            case JournalKind.SIGNAL | JournalKind.UPDATE:
                note = _error(event.payload) if failed else _value(event.payload)
                self._instant(event, f"{event.kind.name.lower()} {name}", note)
            case JournalKind.ANSWER:
                self._instant(event, f"answer {name}", "sent")
            case JournalKind.CONTINUED:
                self._instant(event, "continued as new", _value(event.payload))
            case JournalKind.PAUSED | JournalKind.RESUMED:
                of = "" if name == "execution" else f" ({name})"
                self._instant(event, f"{event.kind.name.lower()}{of}", _order_text(event.payload))
            case _:
                self._instant(event, name, _order_text(event.payload))

    def _instant(self, event: JournalEvent, name: str, note: str) -> None:
        """What has no duration."""
        line = Line(name=name, begin=event.at, run=event.run, position=event.position)
        line.end, line.note = event.at, note
        line.mark = _mark(event.outcome)
        self._instants.append(line)

    def _awaited(self, waiting: str | None, shown: set[str]) -> Iterator[tuple[str, str]]:
        """What the execution waits for and its journal says nothing of: name and note."""
        if waiting is None or not _WAITS.match(waiting):
            return
        for item in _BETWEEN.split(_WAITS.sub("", waiting, count=1)):
            if (reply := _REPLY.fullmatch(item)) is not None:
                entity_type, id, method = reply.groups()
                if {f"call {entity_type}/{id} {method}", f"call {entity_type}.{method}"} & shown:
                    continue
            stepwise = _RETRY.fullmatch(item) or _COMPLETION.fullmatch(item)
            if stepwise is not None and stepwise[1] in shown:
                continue
            name, _, when = item.removeprefix("the ").partition(" due ")
            yield name, readable(f"due {when}", self._now) if when else "waits for it"


def timeline(
    events: Sequence[JournalEvent],
    *,
    waiting: str | None,
    begin: datetime,
    now: datetime,
    targets: Mapping[Snowflake, str],
) -> list[Line]:
    """The lines of a whole journal of an execution that began at ``begin``."""
    collected = Timeline(now=now, targets=targets)
    for event in events:
        collected.add(event)
    last = events[-1] if events else None
    run, since = (1, begin) if last is None else (last.run, last.at)
    return collected.lines(waiting=waiting, run=run, since=since)


def _order_text(payload: object) -> str:
    """Why somebody wanted something, and who."""
    if not isinstance(payload, dict):
        return str(payload or "")
    told = cast("dict[str, object]", payload)
    by = f"by {told['by']}" if told.get("by") else ""
    return ": ".join(str(each) for each in (by, told.get("reason")) if each)


def _order(line: Line) -> tuple[object, ...]:
    return line.run, line.mark is Mark.PENDING, line.begin, line.position


def _mark(outcome: Outcome) -> Mark:
    match outcome:
        case Outcome.OK:
            return Mark.OK
        case Outcome.CANCELLED:
            return Mark.CANCELLED
        case Outcome.FAILED | Outcome.TIMED_OUT | Outcome.INTERRUPTED | Outcome.TERMINATED:
            return Mark.FAILED


def _value(payload: object) -> str:
    return "" if payload is None else to_json(payload)


def _error(payload: object) -> str:
    return error_text(payload) or _value(payload)
