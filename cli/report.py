"""Everything ``show`` says of one execution: the header, its outcome, and the timeline."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, Group, RenderableType
from rich.text import Text

from cli import drawing, forms
from cli.durations import ago, brief, clock_time, readable
from cli.output import STATUS_STYLES, facts, printable, to_json
from cli.timeline import timeline
from engine import admin
from engine.core.errors import ErrorDetails
from engine.core.ids import Snowflake
from engine.core.journal import JournalKind
from engine.core.outcome import ExecutionInfo, JournalEvent
from engine.core.status import Status
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import RunnerRow, Storage, StoredExecution
from engine.workflow.token import StepToken

_MOST_TARGETS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One execution at one time. ``request`` is the decoded request, ``starts_at`` when it may
    begin at the earliest, ``waiting`` what its row says it waits for."""

    info: ExecutionInfo
    events: Sequence[JournalEvent]
    request: object
    now: datetime
    starts_at: datetime | None = None
    owner: RunnerRow | None = None
    waiting: str | None = None
    targets: Mapping[Snowflake, str]

    def form(self) -> forms.Form:
        """As JSON: the execution with its request and journal."""
        return (
            forms.execution(self.info)
            | forms.outcome(self.info)
            | {"request": self.request, "history": [forms.event(event) for event in self.events]}
        )

    def drawn(self, console: Console) -> RenderableType:
        """For a terminal."""
        info = self.info
        style = STATUS_STYLES.get(str(info.status), "bold")
        title = Text.assemble(
            (f"{info.workflow}/{info.id}", "bold"), "  ", (str(info.status), style)
        )
        parts: list[RenderableType] = [title, Text(), self._header()]
        if info.error is not None:
            parts += [Text(), _traceback(info.error)]
        begin = info.started_at or info.created_at
        lines = timeline(
            self.events, waiting=self.waiting, begin=begin, now=self.now, targets=self.targets
        )
        if lines:
            glyphs = drawing.glyphs_for(console)
            drawn = drawing.draw(lines, begin=begin, glyphs=glyphs, width=console.width)
            parts += [Text(), drawn]
        elif info.started_at is not None and info.finished_at is None:
            parts += [Text(), Text("no step has ended yet", "dim")]
        return Group(*parts)

    def _header(self) -> RenderableType:
        return facts((name, value) for name, value in self._facts() if value)

    def _facts(self) -> list[tuple[str, str]]:
        info = self.info
        succeeded = info.status is Status.SUCCEEDED
        return [
            ("why", "" if info.error or succeeded else readable(info.why, self.now)),
            ("next", advice(info, self.waiting, self.events)),
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
            ("result", to_json(info.result) if succeeded else ""),
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
        """Whose it is now; of no interest once it has ended."""
        info = self.info
        if info.finished_at is not None or info.runner is None:
            return ""
        where = f" ({self.owner.host}:{self.owner.pid})" if self.owner else ""
        return f"runner {info.runner}{where}, by shard {info.shard}"

    def _attempts(self) -> str:
        """Said when there were more of them than steps. What a run has of an earlier one was not
        done again."""
        tries: dict[tuple[object, ...], int] = {}
        for event in self.events:
            if event.kind in {JournalKind.STEP, JournalKind.ATTEMPT}:
                tries.setdefault((event.name, event.ordinal, event.attempt, event.at), event.run)
        steps = {(run, name, ordinal) for (name, ordinal, *_), run in tries.items()}
        if len(tries) == len(steps):
            return ""
        return f"{len(tries)} attempts of {len(steps)} step{'s' if len(steps) > 1 else ''}"


async def report(
    storage: PostgresStorage, stored: StoredExecution, *, silent_before: datetime
) -> Report:
    """Read all there is to say about an execution."""
    info = await admin.describe(storage, stored, silent_before=silent_before)
    request = await storage.request(stored.request_id)
    runners = {row.id: row for row in await storage.runners()}
    events = await admin.history(storage, stored.request_id)
    return Report(
        info=info,
        events=events,
        request=None if request is None else admin.readable(request.payload),
        starts_at=None if request is None else request.deliver_at,
        owner=runners.get(stored.runner) if stored.runner else None,
        waiting=None if stored.status.finished else stored.waiting,
        targets=await _targets(storage, events),
        now=storage.clock.now(),
    )


def advice(info: ExecutionInfo, waiting: str | None, events: Sequence[JournalEvent]) -> str:
    """The command that lets it go on, where there is one."""
    if not info.status.finished and (token := _awaited(info, events)) is not None:
        return f"outlast complete {token} JSON"
    deferred = re.search(r"\bdeferred ([^,\s]+)", waiting or "")
    if deferred is None or info.status.finished:
        return ""
    return f"outlast resolve {info.workflow}/{info.id} {deferred[1]} JSON"


def _awaited(info: ExecutionInfo, events: Sequence[JournalEvent]) -> StepToken | None:
    """The token of the first attempt that waits for its completion."""
    open_attempts: dict[tuple[str, int], JournalEvent] = {}
    for event in events:
        if event.kind is JournalKind.POSTPONED and event.run == info.run:
            open_attempts[event.name, event.ordinal] = event
        elif event.kind in {JournalKind.STEP, JournalKind.ATTEMPT}:
            open_attempts.pop((event.name, event.ordinal), None)
    if not open_attempts:
        return None
    first = next(iter(open_attempts.values()))
    return StepToken(
        group=info.shard.group,
        workflow=info.workflow,
        id=info.id,
        run=first.run,
        name=first.name,
        ordinal=first.ordinal,
        attempt=first.attempt,
    )


async def _targets(storage: Storage, events: Sequence[JournalEvent]) -> dict[Snowflake, str]:
    """The ids of the entities that were called, as far as there are not too many."""
    calls = [event.source for event in events if event.kind is JournalKind.CALL]
    sources = [source for source in calls if source is not None][-_MOST_TARGETS:]
    requests = await asyncio.gather(*(storage.request(source) for source in sources))
    return {
        request.request_id: request.address.entity_id for request in requests if request is not None
    }


def _traceback(error: ErrorDetails) -> RenderableType:
    """The error and what caused it, each with the line of the user's code it came from."""
    text = Text(printable(str(error)), style="red")
    cause: ErrorDetails | None = error
    while cause is not None:
        if cause is not error:
            text.append(printable(f"\ncaused by {cause}"), style="red")
        text.append(_innermost_frame(cause.traceback), style="dim")
        cause = cause.cause
    return text


def _innermost_frame(traceback: str) -> str:
    """The last frame of a traceback that is not the engine's, after a line break."""
    frames = re.findall(r'  File "([^"]*)"(.*)\n((?:    .*\n?)*)', traceback)
    own = [frame for frame in frames if "/engine/" not in frame[0]]
    if not own:
        return ""
    path, where, code = own[-1]
    lines = [line for line in code.splitlines() if line.strip(" ^~")]
    return "\n".join(["", f"  {path}{where}", *lines])


def _at(when: datetime | None, now: datetime) -> str:
    return "" if when is None else f"{clock_time(when)}, {ago(when, now)}"
