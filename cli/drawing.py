"""A timeline's lines on a terminal: offset, duration, bar, name and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING

from cli.durations import brief
from cli.timeline import Line, Mark

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

_STYLES = {
    Mark.OK: "green",
    Mark.FAILED: "red",
    Mark.CANCELLED: "yellow",
    Mark.PENDING: "cyan",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """What the drawing is made of, by what the terminal can show."""

    work: str
    pause: str
    wait: str
    instant: str
    marks: dict[Mark, str]
    branch: str


UNICODE = Glyphs(
    work="━",
    pause="┄",
    wait="╌",
    instant="◆",
    marks={Mark.OK: "✓", Mark.FAILED: "✗", Mark.CANCELLED: "○", Mark.PENDING: "…"},
    branch="└",
)
ASCII = Glyphs(
    work="=",
    pause=".",
    wait="-",
    instant="*",
    marks={Mark.OK: "+", Mark.FAILED: "x", Mark.CANCELLED: "~", Mark.PENDING: "."},
    branch="`",
)


def glyphs_for(console: "Console") -> Glyphs:
    """Unicode where the terminal's encoding has it."""
    return UNICODE if console.encoding.lower().startswith("utf") else ASCII


def draw(
    lines: Sequence[Line], *, begin: datetime, glyphs: Glyphs = UNICODE, width: int = 100
) -> "RenderableType":
    """The timeline of lines, whose offsets count from ``begin``."""
    from rich.table import Table
    from rich.text import Text

    bar = max(12, min(32, width // 4))
    ends = [span.end for line in lines for span in line.spans if span.works]
    end = max([line.end or line.begin for line in lines] + ends, default=begin)
    scale = _Scale(begin=begin, length=max(end - begin, timedelta(milliseconds=1)), cells=bar)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("AT", justify="right", no_wrap=True)
    table.add_column("TOOK", justify="right", no_wrap=True)
    table.add_column("", width=bar + 1, no_wrap=True)
    table.add_column("", width=1, no_wrap=True)
    table.add_column("EVENT", overflow="fold", max_width=max(16, width // 3))
    table.add_column("RESULT", overflow="fold")
    run = lines[0].run if lines else 1
    for line in lines:
        if line.run != run:
            run = line.run
            table.add_row("", "", Text(f"run {run}", style="bold"), "", "", "")
        style = _STYLES[line.mark]
        table.add_row(
            "+" + brief(line.begin - begin),
            _took(line),
            Text(_bar(line, scale, glyphs), style=style),
            Text(glyphs.marks[line.mark], style=style),
            Text(line.name),
            _note(line, bar_style=style),
        )
        for attempt, error in _tries(line):
            table.add_row(
                "", "", "", "", Text(f"  {glyphs.branch} {attempt}", "dim"), Text(error, "dim")
            )
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scale:
    """From times to cells of the bar."""

    begin: datetime
    length: timedelta
    cells: int

    def cell(self, when: datetime) -> int:
        share = (when - self.begin) / self.length
        return min(self.cells, max(0, round(share * self.cells)))


def _bar(line: Line, scale: _Scale, glyphs: Glyphs) -> str:
    if line.mark is not Mark.PENDING and not line.spans:
        at = min(scale.cell(line.begin), scale.cells - 1)
        return " " * at + glyphs.instant
    cells = [" "] * scale.cells
    for span in line.spans:
        first = min(scale.cell(span.begin), scale.cells - 1)
        last = max(first + 1, scale.cell(span.end)) if span.works else scale.cell(span.end)
        for position in range(first, min(last, scale.cells)):
            if span.works or cells[position] == " ":
                cells[position] = glyphs.work if span.works else glyphs.pause
    if line.mark is Mark.PENDING:
        begin = line.spans[-1].begin if line.spans else line.begin
        for position in range(min(scale.cell(begin), scale.cells - 1), scale.cells):
            if cells[position] in {" ", glyphs.pause}:
                cells[position] = glyphs.wait
        return "".join(cells) + ">"
    return "".join(cells).rstrip()


def _tries(line: Line) -> list[tuple[str, str]]:
    """The failed attempts: the first, and the last ones of many."""
    tries = [
        (attempt, error) for attempt, _, error in (each.partition(": ") for each in line.tries)
    ]
    if len(tries) > _MOST_TRIES:
        left_out = len(tries) - _MOST_TRIES
        tries[1 : 1 + left_out] = [("...", f"{left_out} more attempts")]
    return tries


def _took(line: Line) -> str:
    if line.end is None or not line.spans:
        return ""
    return brief(line.end - line.begin)


def _note(line: Line, *, bar_style: str) -> "Text":
    from rich.text import Text

    text = Text(line.note if len(line.note) <= _LONGEST else line.note[: _LONGEST - 1] + "…")
    if line.mark is Mark.FAILED:
        text.stylize(bar_style)
    if line.attempts > 1:
        text = Text(f"{line.attempts} attempts  ", style="yellow") + text
    return text


_LONGEST = 300
_MOST_TRIES = 4
