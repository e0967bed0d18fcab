"""Everything ``show`` says of one execution: the header, its outcome, and the timeline."""

import re
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from cli import drawing, forms, timeline
from cli.durations import ago, brief, clock_time, readable
from cli.output import STATUS_STYLES, to_json

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console, RenderableType

    from engine.core.errors import ErrorDetails
    from engine.outcome import ExecutionInfo, JournalEvent
    from engine.storage.postgres import PostgresStorage
    from engine.storage.protocol import RunnerRow, StoredExecution


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One execution at one time. ``request`` is the decoded request, ``starts_at`` when it may
    begin at the earliest."""

    info: "ExecutionInfo"
    events: "Sequence[JournalEvent]"
    request: object
    starts_at: datetime | None
    owner: "RunnerRow | None"
    waiting: str | None
    now: datetime

    def form(self) -> forms.Form:
        """As JSON: the execution with its request and journal."""
        return (
            forms.execution(self.info)
            | forms.outcome(self.info)
            | {
                "request": self.request,
                "history": [forms.event(event) for event in self.events],
            }
        )

    def drawn(self, console: "Console") -> "RenderableType":
        """For a terminal."""
        from rich.console import Group
        from rich.text import Text

        info, width = self.info, console.width
        status = str(info.status)
        title = Text.assemble(
            (f"{info.workflow}/{info.id}", "bold"),
            "  ",
            (status, STATUS_STYLES.get(status, "bold")),
        )
        parts: list[RenderableType] = [title, Text(), self._header()]
        if info.error is not None:
            parts += [Text(), self._traceback(info.error)]
        begin = info.started_at or info.created_at
        lines = timeline.lines(
            self.events,
            waiting=self.waiting,
            since=self.events[-1].at if self.events else begin,
            now=self.now,
        )
        if lines:
            glyphs = drawing.glyphs_for(console)
            parts += [Text(), drawing.draw(lines, begin=begin, glyphs=glyphs, width=width)]
        elif info.started_at is not None:
            parts += [Text(), Text("no step has ended yet", "dim")]
        return Group(*parts)

    def _header(self) -> "RenderableType":
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2, 0, 0))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column(overflow="fold")
        for name, value in self._facts():
            if value:
                grid.add_row(name, Text(value))
        return grid

    def _facts(self) -> "list[tuple[str, str]]":
        info = self.info
        return [
            ("why", "" if info.error or _succeeded(info) else readable(info.why, self.now)),
            ("next", advice(info, self.waiting)),
            ("created", f"{clock_time(info.created_at)}, {ago(info.created_at, self.now)}"),
            ("starts", _at(self.starts_at, self.now) if info.started_at is None else ""),
            ("started", self._started()),
            ("finished", self._finished()),
            ("wakes", _at(info.wake_at, self.now)),
            ("owner", self._owner()),
            ("attempts", self._attempts()),
            ("attributes", to_json(dict(info.attributes)) if info.attributes else ""),
            ("parent", "" if info.parent is None else f"request {info.parent}"),
            ("request", to_json(self.request)),
            ("result", to_json(info.result) if _succeeded(info) else ""),
        ]

    def _started(self) -> str:
        info = self.info
        if info.started_at is None:
            return ""
        return f"{clock_time(info.started_at)}, {brief(info.started_at - info.created_at)} later"

    def _finished(self) -> str:
        info = self.info
        if info.finished_at is None:
            return ""
        took = info.finished_at - (info.started_at or info.created_at)
        return f"{clock_time(info.finished_at)}, after {brief(took)}"

    def _owner(self) -> str:
        """Who it is for now; of no interest once it has ended."""
        info = self.info
        if info.finished_at is not None:
            return ""
        if info.runner is None:
            return f"nobody owns its shard {info.shard}"
        where = f" ({self.owner.host}, process {self.owner.pid})" if self.owner else ""
        return f"runner {info.runner}{where}, by shard {info.shard}"

    def _attempts(self) -> str:
        steps = {(e.name, e.ordinal) for e in self.events if e.kind.name in {"STEP", "ATTEMPT"}}
        tries = sum(e.kind.name in {"STEP", "ATTEMPT"} for e in self.events)
        if tries == len(steps):
            return ""
        return f"{tries} attempts of {len(steps)} step{'s' if len(steps) > 1 else ''}"

    def _traceback(self, error: "ErrorDetails") -> "RenderableType":
        """The error and what caused it, each with the line of the user's code it came from."""
        from rich.text import Text

        text = Text(str(error), style="red")
        cause: ErrorDetails | None = error
        while cause is not None:
            if cause is not error:
                text.append(f"\ncaused by {cause}", style="red")
            text.append(_innermost_frame(cause.traceback), style="dim")
            cause = cause.cause
        return text


async def report(storage: "PostgresStorage", stored: "StoredExecution") -> Report:
    """Read all there is to say about an execution."""
    from engine import admin

    info = await admin.describe(storage, stored)
    request = await storage.request(stored.request_id)
    runners = {row.id: row for row in await storage.runners()}
    return Report(
        info=info,
        events=await admin.history(storage, stored.request_id),
        request=None if request is None else admin.readable(request.payload),
        starts_at=None if request is None else request.deliver_at,
        owner=runners.get(stored.runner) if stored.runner else None,
        waiting=None if stored.status.finished else stored.waiting,
        now=storage.clock.now(),
    )


def advice(info: "ExecutionInfo", waiting: str | None) -> str:
    """The command that lets it go on, where there is one."""
    deferred = re.search(r"waits for (?:.*, )?deferred ([^,\s]+)", waiting or "")
    if deferred is None:
        return ""
    return f"outlast resolve {info.workflow}/{info.id} {deferred[1]} JSON"


def _innermost_frame(traceback: str) -> str:
    """The last frame of a traceback that is not the engine's, with a line break before it."""
    frames = re.findall(r'  File "([^"]*)"(.*)\n((?:    .*\n?)*)', traceback)
    own = [frame for frame in frames if "/engine/" not in frame[0]]
    if not own:
        return ""
    path, where, code = own[-1]
    lines = [line for line in code.splitlines() if line.strip(" ^~")]
    return "\n".join(["", f"  {path}{where}", *lines])


def _succeeded(info: "ExecutionInfo") -> bool:
    return str(info.status) == "succeeded"


def _at(when: datetime | None, now: datetime) -> str:
    return "" if when is None else f"{clock_time(when)}, {ago(when, now)}"
