"""Where a command's answer goes: tables on a terminal, one JSON object per line otherwise."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

T = TypeVar("T")

_LEAST_REST = 10

STATUS_STYLES = {
    "succeeded": "green",
    "failed": "red",
    "blocked": "red",
    "interrupted": "yellow",
    "terminated": "yellow",
    "running": "cyan",
}


class Output:
    """Standard output in one of the two forms; notes for people go to standard error."""

    def __init__(self, *, as_json: bool | None = None, console: "Console | None" = None) -> None:
        """``as_json``: None decides by whether standard output is a terminal."""
        self.as_json = not sys.stdout.isatty() if as_json is None else as_json
        self._console = console

    @property
    def console(self) -> "Console":
        if self._console is None:
            from rich.console import Console

            self._console = Console(highlight=False, markup=False, emoji=False)
        return self._console

    def show(self, renderable: "RenderableType", *forms: Mapping[str, object]) -> None:
        """One answer, in both forms."""
        if self.as_json:
            for form in forms:
                self.line(form)
        else:
            self.console.print(renderable)

    def table(
        self,
        items: Iterable[T],
        *,
        form: Callable[[T], Mapping[str, object]],
        columns: Sequence[str],
        row: Callable[[T], Sequence["RenderableType"]],
        empty: str,
    ) -> None:
        """Many answers: a row or a JSON line for each; ``empty`` is said on a terminal."""
        if self.as_json:
            for item in items:
                self.line(form(item))
            return
        rows = [row(item) for item in items]
        if not rows:
            self.console.print(empty)
            return
        drawn = table(columns, rows)
        if columns[-1].endswith("…"):
            # A terminal that is too narrow breaks the lines: rather that than lose columns.
            least = sum(_width(name, index, rows) for index, name in enumerate(columns))
            if least > self.console.width:
                drawn.width = least
        self.console.print(drawn, crop=False)

    def line(self, form: object) -> None:
        """One line of JSON."""
        sys.stdout.write(to_json(form) + "\n")
        sys.stdout.flush()

    def value(self, value: object) -> None:
        """A bare JSON value: indented on a terminal, on one line otherwise."""
        if self.as_json:
            self.line(value)
        else:
            self.console.print_json(to_json(value))

    def say(self, message: str) -> None:
        """Something done, for a person at a terminal; silent in JSON, where a line says it."""
        if not self.as_json:
            self.console.print(message, soft_wrap=True)

    def note(self, message: str) -> None:
        """Something worth knowing that is not the answer."""
        sys.stderr.write(f"note: {message}\n")


def _width(name: str, index: int, rows: Sequence[Sequence["RenderableType"]]) -> int:
    """What a column needs, the space behind it included."""
    from rich.cells import cell_len

    if name.endswith("…"):
        return _LEAST_REST
    return max(cell_len(each) for each in (name.strip(">"), *(str(row[index]) for row in rows))) + 2


def facts(rows: Iterable[tuple[str, str]]) -> "Table":
    """Names and what they stand for, below each other."""
    from rich.table import Table
    from rich.text import Text

    drawn = Table.grid(padding=(0, 2, 0, 0))
    drawn.add_column(style="dim", no_wrap=True)
    drawn.add_column(overflow="fold")
    for name, value in rows:
        drawn.add_row(name, Text(value))
    return drawn


def table(columns: Sequence[str], rows: Iterable[Sequence["RenderableType"]]) -> "Table":
    """A table without lines. A name that begins with ``>`` is a column to the right; a last one
    that ends with ``…`` takes the width that is left, and is cut rather than wrapped."""
    from rich.table import Table

    takes_rest = columns[-1].endswith("…")
    drawn = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", expand=takes_rest
    )
    for name in columns:
        rest = name.endswith("…")
        drawn.add_column(
            name.strip(">…"),
            justify="right" if name.startswith(">") else "left",
            no_wrap=takes_rest,
            overflow="ellipsis" if rest else "fold",
            ratio=1 if rest else None,
        )
    for row in rows:
        drawn.add_row(*row)
    return drawn


def printable(text: str) -> str:
    """Text of somebody's exception, without what would steer the terminal."""
    return "".join(
        each if each.isprintable() or each == "\n" else f"\\x{ord(each):02x}" for each in text
    )


def to_json(value: object) -> str:
    """Compact JSON that any reader takes; bytes that are no text are shown as hexadecimal."""
    return json.dumps(value, ensure_ascii=False, default=_other)


def error_text(payload: object) -> str | None:
    """A stored error as ``Type: message``; None when the payload is none."""
    if not isinstance(payload, dict):
        return None
    tree = cast("dict[str, object]", payload)
    if not {"type", "message", "traceback"} <= tree.keys():
        return None
    kind, message = str(tree["type"]), str(tree["message"])
    return printable(f"{kind}: {message}" if message else kind)


def _other(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else str(value)
