"""The timeline of a journal, drawn on a console of a fixed width."""

import io
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from cli.drawing import ASCII, UNICODE, Glyphs, draw
from cli.timeline import Line, Mark, timeline
from engine.core.ids import Snowflake
from engine.core.journal import JournalKind, Outcome
from engine.core.outcome import JournalEvent

BEGIN = datetime(2025, 6, 1, 12, tzinfo=UTC)
CALL, STEP, ATTEMPT = JournalKind.CALL, JournalKind.STEP, JournalKind.ATTEMPT


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


class Journal:
    """Makes events one after the other."""

    def __init__(self) -> None:
        self.events: list[JournalEvent] = []

    def add(
        self,
        kind: JournalKind,
        name: str,
        seconds: float,
        *,
        begin: float | None = None,
        due: float | None = None,
        attempt: int = 1,
        ordinal: int = 0,
        outcome: Outcome = Outcome.OK,
        payload: object = None,
        source: int | None = None,
        run: int = 1,
    ) -> "Journal":
        self.events.append(
            JournalEvent(
                run=run,
                position=len(self.events) + 1,
                kind=kind,
                name=name,
                ordinal=ordinal,
                attempt=attempt,
                outcome=outcome,
                at=at(seconds),
                started_at=None if begin is None else at(begin),
                due_at=None if due is None else at(due),
                source=None if source is None else Snowflake(source),
                payload=payload,
            )
        )
        return self

    def lines(self, *, waiting: str | None = None, now: float = 100) -> list[Line]:
        return timeline(
            self.events,
            waiting=waiting,
            begin=BEGIN,
            now=at(now),
            targets={Snowflake(7): "blue"},
        )


def error(message: str, kind: str = "ConnectionError") -> dict[str, object]:
    return {"type": kind, "message": message, "traceback": "", "details": None, "cause": None}


def drawn(lines: Sequence[Line], *, width: int = 80, glyphs: Glyphs = UNICODE) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None, legacy_windows=False)
    console.print(draw(lines, begin=BEGIN, width=width, glyphs=glyphs))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    return [line.rstrip() for line in written.splitlines()]


def finished() -> Journal:
    return (
        Journal()
        .add(CALL, "Stock.reserve", 0, source=7)
        .add(STEP, "Stock.reserve", 1, begin=0, payload="hold-1", source=7)
        .add(JournalKind.RESOLVED, "approved", 4, payload=True)
        .add(ATTEMPT, "charge", 5, begin=4, due=7, outcome=Outcome.FAILED, payload=error("503"))
        .add(STEP, "mail", 6, begin=4)
        .add(STEP, "charge", 8, begin=4, attempt=2, payload="paid 100")
    )


def test_each_step_is_a_line_with_its_bar_on_one_scale() -> None:
    assert drawn(finished().lines(), width=90) == [
        "   AT TOOK                           EVENT                   RESULT",
        ' +0ms 1.0s ━━━                     ✓ call Stock/blue reserve "hold-1"',
        "+4.0s                 ◆            ✓ deferred approved       resolved: true",
        '+4.0s 4.0s            ━━━┄┄┄┄┄━━━  ✓ charge                  2 attempts  "paid 100"',
        "                                       └ attempt 1           ConnectionError: 503, again",
        "                                                             after 2.0s",
        "+4.0s 2.0s            ━━━━━━       ✓ mail",
    ]


def test_a_terminal_without_unicode_gets_plain_signs() -> None:
    lines = drawn(finished().lines(), glyphs=ASCII)

    assert all(line.isascii() for line in lines)
    assert any("+ charge" in line and "===" in line for line in lines)


def test_a_failed_step_shows_its_error() -> None:
    journal = Journal().add(STEP, "charge", 1, begin=0, outcome=Outcome.FAILED, payload=error("no"))

    (line,) = journal.lines()

    assert (line.mark, line.note) == (Mark.FAILED, "ConnectionError: no")


def test_a_call_that_did_not_leave_shows_its_error() -> None:
    failed = error("too large", kind="InvalidPayload")
    journal = Journal().add(CALL, "Letter", 1, outcome=Outcome.FAILED, payload=failed)

    (line,) = journal.lines()

    assert (line.name, line.mark, line.note) == (
        "call Letter",
        Mark.FAILED,
        "InvalidPayload: too large",
    )


def test_a_step_that_is_tried_again_is_pending_and_says_when() -> None:
    journal = Journal().add(
        ATTEMPT, "charge", 1, begin=0, due=61, outcome=Outcome.FAILED, payload=error("503")
    )
    waiting = "waits for attempt 2 of step charge#1 due 2025-06-01T12:01:01+00:00"

    (before,) = journal.lines(waiting=waiting, now=31)
    (after,) = journal.lines(waiting=waiting, now=91)

    assert (before.mark, before.note) == (Mark.PENDING, "attempt 2 is due in 30s")
    assert before.tries == [(1, "ConnectionError: 503, again after 1m")]
    assert after.note == "attempt 2 is due since 30s"


def test_what_is_waited_for_is_drawn_to_the_end() -> None:
    journal = (
        Journal()
        .add(STEP, "charge", 1, begin=0)
        .add(CALL, "Stock.reserve", 1, source=7)
        .add(CALL, "Mail.send", 1, source=8, ordinal=3)
    )
    waiting = (
        "waits for deferred approved, the timer due 2025-06-01T12:02:00+00:00,"
        " the reply of Stock/blue reserve, the reply of Mail/a, b send, child Refund/o-1"
    )

    lines = journal.lines(waiting=waiting, now=60)

    pending = [(line.name, line.note) for line in lines if line.mark is Mark.PENDING]
    assert pending[:4] == [
        ("call Stock/blue reserve", "no reply yet"),
        ("call Mail.send", "no reply yet"),
        ("deferred approved", "waits for it"),
        ("timer", "due 2025-06-01 12:02:00Z (in 1m)"),
    ]
    assert ("child Refund/o-1", "waits for it") in pending
    assert all(row.count(">") == 1 for row in drawn(lines) if "╌" in row)


def test_of_many_attempts_the_first_and_the_last_are_shown() -> None:
    journal = Journal()
    for number in range(1, 9):
        journal.add(
            ATTEMPT,
            "charge",
            number,
            begin=0,
            due=number + 0.5,
            attempt=number,
            outcome=Outcome.FAILED,
            payload=error(f"try {number}"),
        )

    rows = "\n".join(drawn(journal.lines(), width=100))

    assert "8 attempts" in rows
    assert [f"try {number}," in rows for number in range(1, 9)] == [True] + [False] * 4 + [True] * 3
    assert "4 more attempts" in rows


@pytest.mark.parametrize(
    ("kind", "outcome", "payload", "note"),
    [
        (JournalKind.RESOLVED, Outcome.OK, {"a": 1}, 'resolved: {"a": 1}'),
        (JournalKind.RESOLVED, Outcome.FAILED, error("no: way", "Rejected"), "rejected: no: way"),
        (JournalKind.TIMER, Outcome.OK, None, "fired"),
        (JournalKind.INTERRUPT, Outcome.OK, "enough", "enough"),
        (STEP, Outcome.CANCELLED, None, "cancelled by the body"),
        (STEP, Outcome.TIMED_OUT, error("", "TimeoutError"), "TimeoutError"),
        (STEP, Outcome.OK, b"\xff", '"ff"'),
        (STEP, Outcome.OK, "\x1b[2J", '"\\u001b[2J"'),
        (STEP, Outcome.FAILED, error("\x1b[2J [red]"), "ConnectionError: \\x1b[2J [red]"),
    ],
)
def test_every_kind_of_event_says_what_it_was(
    kind: JournalKind, outcome: Outcome, payload: object, note: str
) -> None:
    (line,) = Journal().add(kind, "x", 1, outcome=outcome, payload=payload).lines()

    assert line.note == note


def test_runs_are_told_apart() -> None:
    journal = Journal().add(STEP, "a", 1, begin=0).add(STEP, "a", 3, begin=2, run=2)

    assert [row.split()[:2] for row in drawn(journal.lines()) if "run" in row] == [["run", "2"]]


def test_a_line_of_an_empty_journal_is_what_it_waits_for() -> None:
    (line,) = Journal().lines(waiting="waits for deferred approved")

    assert (line.name, line.begin) == ("deferred approved", BEGIN)
    assert Journal().lines(waiting="a reason of another kind") == []
