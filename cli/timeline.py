"""An execution's journal as a timeline: what ran when, for how long, how often, and how it ended.

From the events of ``admin.history``; on to ``drawing``, which puts the lines on a terminal.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import TYPE_CHECKING

from cli.durations import ago, brief, readable
from cli.output import error_text, to_json

if TYPE_CHECKING:
    from engine.outcome import JournalEvent

_WAITS = re.compile(r"^(?:it )?waits for ")


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
    end: datetime | None
    mark: Mark
    run: int
    note: str = ""
    attempts: int = 0
    spans: list[Span] = field(default_factory=list[Span])
    tries: list[str] = field(default_factory=list[str])
    """The failed attempts that another followed."""


def lines(
    events: Sequence["JournalEvent"], *, waiting: str | None, since: datetime, now: datetime
) -> list[Line]:
    """The timeline, by when things began. ``waiting``: what the execution's row says it waits for;
    what of it the journal does not show becomes a pending line that began at ``since``."""
    drawn: dict[tuple[object, ...], Line] = {}
    for event in events:
        _draw(drawn, event, now)
    found = list(drawn.values())
    run = events[-1].run if events else 1
    found += _pending(waiting, found, run=run, since=since, now=now)
    return sorted(found, key=lambda line: (line.run, line.mark is Mark.PENDING, line.begin))


def _draw(drawn: dict[tuple[object, ...], Line], event: "JournalEvent", now: datetime) -> None:
    match event.kind.name:
        case "CALL":
            drawn[_key(event)] = Line(
                name=f"call {event.name}",
                begin=event.at,
                end=None,
                mark=Mark.PENDING,
                run=event.run,
                note="no reply yet",
            )
        case "ATTEMPT":
            _attempt(drawn, event, now)
        case "STEP":
            _step(drawn, event)
        case kind:
            drawn[event.run, event.position] = _instant(kind, event)


def _attempt(drawn: dict[tuple[object, ...], Line], event: "JournalEvent", now: datetime) -> None:
    begin = event.started_at or event.at
    line = drawn.setdefault(
        _key(event),
        Line(name=event.name, begin=begin, end=None, mark=Mark.PENDING, run=event.run),
    )
    due = event.due_at or event.at
    line.spans.append(Span(begin=_resumed(line), end=event.at, works=True))
    line.spans.append(Span(begin=event.at, end=max(due, event.at), works=False))
    line.attempts = event.attempt
    line.tries.append(
        f"attempt {event.attempt}: {_error(event.payload)}, again after {brief(due - event.at)}"
    )
    line.note = f"attempt {event.attempt + 1} is due {ago(due, now)}"
    if due <= now:
        line.note = f"attempt {event.attempt + 1} is due since {brief(now - due)}"


def _step(drawn: dict[tuple[object, ...], Line], event: "JournalEvent") -> None:
    begin = event.started_at or event.at
    line = drawn.setdefault(
        _key(event), Line(name=event.name, begin=begin, end=None, mark=Mark.PENDING, run=event.run)
    )
    line.spans.append(Span(begin=min(_resumed(line), event.at), end=event.at, works=True))
    line.end = event.at
    line.attempts = event.attempt
    line.mark = _MARKS.get(event.outcome.name, Mark.FAILED)
    match event.outcome.name:
        case "OK":
            line.note = _value(event.payload)
        case "CANCELLED":
            line.note = "cancelled by the body"
        case _:
            line.note = _error(event.payload)


def _instant(kind: str, event: "JournalEvent") -> Line:
    """What has no duration: a timer, a resolution, an interrupt."""
    names = {"TIMER": "timer", "RESOLVED": f"deferred {event.name}", "INTERRUPT": "interrupt"}
    note = ""
    if kind == "RESOLVED":
        ok = event.outcome.name == "OK"
        note = (
            f"resolved: {_value(event.payload)}" if ok else f"rejected: {_message(event.payload)}"
        )
    elif kind == "INTERRUPT":
        note = str(event.payload or "")
    elif kind == "TIMER":
        note = "fired"
    return Line(
        name=names.get(kind, f"{kind.lower()} {event.name}"),
        begin=event.at,
        end=event.at,
        mark=_MARKS.get(event.outcome.name, Mark.FAILED),
        run=event.run,
        note=note,
    )


def _pending(
    waiting: str | None, found: Iterable[Line], *, run: int, since: datetime, now: datetime
) -> Iterable[Line]:
    """Lines for what the execution waits for and its journal says nothing of."""
    if not waiting or not _WAITS.match(waiting):
        return
    shown = " ".join(line.name for line in found if line.mark is Mark.PENDING)
    for item in _WAITS.sub("", waiting).split(", "):
        call = re.fullmatch(r"the reply of ([^/]+)/.* (\S+)", item)
        if call and f"call {call[1]}.{call[2]}" in shown:
            continue
        retried = re.fullmatch(r"attempt \d+ of (?:step )?(\S+?)(?:#\d+)? due .*", item)
        if retried and retried[1] in shown:
            continue
        name, _, when = item.partition(" due ")
        note = readable(f"due {when}", now) if when else "waits for it"
        yield Line(
            name=name.removeprefix("the "),
            begin=since,
            end=None,
            mark=Mark.PENDING,
            run=run,
            note=note,
        )


def _key(event: "JournalEvent") -> tuple[object, ...]:
    return event.run, "step", event.name, event.ordinal


def _resumed(line: Line) -> datetime:
    """When the attempt that follows the line's spans began."""
    return line.spans[-1].end if line.spans else line.begin


def _value(payload: object) -> str:
    return "" if payload is None else to_json(payload)


def _error(payload: object) -> str:
    return error_text(payload) or _value(payload)


def _message(payload: object) -> str:
    """The text of an error that is nobody's exception."""
    return _error(payload).partition(": ")[2]


_MARKS = {"OK": Mark.OK, "CANCELLED": Mark.CANCELLED}
