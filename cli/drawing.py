"""A timeline's lines on a terminal: offset, duration, bar, name and how it ended."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from cli.durations import brief
from cli.timeline import Line, Mark

_STYLES = {
    Mark.OK: "green",
    Mark.FAILED: "red",
    Mark.CANCELLED: "yellow",
    Mark.PENDING: "cyan",
}
_LONGEST_NOTE = 300
_MOST_TRIES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Glyphs:
    """What the drawing is made of, by what the terminal can show."""

    work: str
    pause: str
    wait: str
    instant: str
    branch: str
    marks: Mapping[Mark, str]


UNICODE = Glyphs(
    work="━",
    pause="┄",
    wait="╌",
    instant="◆",
    branch="└",
    marks={Mark.OK: "✓", Mark.FAILED: "✗", Mark.CANCELLED: "○", Mark.PENDING: "…"},
)
ASCII = Glyphs(
    work="=",
    pause=".",
    wait="-",
    instant="*",
    branch="`",
    marks={Mark.OK: "+", Mark.FAILED: "x", Mark.CANCELLED: "o", Mark.PENDING: "."},
)


def glyphs_for(console: Console) -> Glyphs:
    """Unicode where the terminal's encoding has it."""
    return UNICODE if console.encoding.lower().startswith("utf") else ASCII


def draw(
    lines: Sequence[Line], *, begin: datetime, width: int, glyphs: Glyphs = UNICODE
) -> RenderableType:
    """The timeline of lines, whose offsets count from ``begin``, for so many columns."""
    cells = max(12, min(32, width // 4))
    ends = [span.end for line in lines for span in line.spans if span.works]
    end = max([begin, *(line.end or line.begin for line in lines), *ends])
    bar = _Bar(begin=begin, length=max(end - begin, _TICK), cells=cells, glyphs=glyphs)
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    table.add_column("AT", justify="right", no_wrap=True)
    table.add_column("TOOK", justify="right", no_wrap=True)
    table.add_column("", width=cells + 1, no_wrap=True)
    table.add_column("", width=1, no_wrap=True)
    table.add_column("EVENT", overflow="fold", max_width=max(16, width // 3))
    table.add_column("RESULT", overflow="fold")
    run = lines[0].run if lines else 1
    for line in lines:
        if line.run != run:
            run = line.run
            table.add_row("", "", Text(f"run {run}", "bold"), "", "", "")
        style = _STYLES[line.mark]
        table.add_row(
            f"+{brief(line.begin - begin)}",
            brief(line.end - line.begin) if line.end and line.spans else "",
            Text(bar.of(line), style),
            Text(glyphs.marks[line.mark], style),
            Text(line.name),
            _note(line),
        )
        for attempt, error in _tries(line):
            name = Text(f"  {glyphs.branch} {attempt}", "dim")
            table.add_row("", "", "", "", name, Text(error, "dim"))
    return table


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bar:
    """Draws each line's bar on one scale."""

    begin: datetime
    length: timedelta
    cells: int
    glyphs: Glyphs

    def of(self, line: Line) -> str:
        glyphs, pending = self.glyphs, line.mark is Mark.PENDING
        if not pending and not line.spans:
            return " " * self._cell(line.begin) + glyphs.instant
        row = [" "] * self.cells
        for span in line.spans:
            first, last = self._cell(span.begin), self._cell(span.end)
            for cell in range(first, last + 1):
                if span.works or row[cell] == " ":
                    row[cell] = glyphs.work if span.works else glyphs.pause
        if not pending:
            return "".join(row).rstrip()
        for cell in range(self._cell(line.resumed if line.spans else line.begin), self.cells):
            if row[cell] == " ":
                row[cell] = glyphs.wait
        return "".join(row) + ">"

    def _cell(self, when: datetime) -> int:
        share = (when - self.begin) / self.length
        return min(self.cells - 1, max(0, int(share * self.cells)))


_TICK = timedelta(milliseconds=1)


def _note(line: Line) -> Text:
    cut = line.note if len(line.note) <= _LONGEST_NOTE else line.note[: _LONGEST_NOTE - 1] + "…"
    text = Text(cut, _STYLES[line.mark] if line.mark is Mark.FAILED else "")
    if line.attempts > 1:
        return Text.assemble((f"{line.attempts} attempts  ", "yellow"), text)
    return text


def _tries(line: Line) -> list[tuple[str, str]]:
    """The failed attempts: of many, the first and the last ones."""
    tries = [(f"attempt {number}", error) for number, error in line.tries]
    if len(tries) > _MOST_TRIES:
        left_out = len(tries) - _MOST_TRIES
        tries[1 : 1 + left_out] = [("...", f"{left_out} more attempts")]
    return tries
