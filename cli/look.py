"""Look at executions: ``ls``, ``show``, ``why``, ``history``, ``tail``."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import add_command
from cli.durations import ago, brief, clock_time, readable
from cli.executions import ExecutionId, find, name_of
from cli.filters import Filters
from cli.output import STATUS_STYLES, error_text, printable, to_json
from cli.session import Session, database_now

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import RenderableType

    from engine.core.outcome import ExecutionInfo, JournalEvent
    from engine.storage.protocol import Storage, StoredExecution

PANEL = "Look"
_FOLLOW = 0.3


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    for function in (ls, show, why, history, tail):
        add_command(app, function, panel=PANEL)


async def ls(
    session: Session,
    filters: Filters,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.", min=1)] = 50,
    after: Annotated[
        str | None,
        typer.Option(
            "--after", help="Only older ones than this: the last line before.", metavar="ID"
        ),
    ] = None,
) -> None:
    """List executions, youngest first."""
    from cli import forms
    from engine import admin

    async with session.storage() as storage:
        now = database_now(storage)
        wanted = await filters.read(storage, now)
        if after is not None:
            wanted = replace(wanted, after=(await find(storage, after)).request_id)
        silent_before = session.silent_before(storage)
        infos = admin.executions(storage, wanted, limit=limit, silent_before=silent_before)
        found = [info async for info in infos]
    filtered = filters.given or after is not None
    session.output.table(
        found,
        form=forms.execution,
        columns=["EXECUTION", "STATUS", "CREATED", ">TOOK", "WHY…"],
        row=lambda info: _row(info, now),
        empty="no executions" + (" match" if filtered else " yet: 'outlast start' starts one"),
    )
    if len(found) == limit and not session.output.as_json:
        session.output.note(f"there may be more: --after {found[-1].workflow}/{found[-1].id}")


async def show(session: Session, id: ExecutionId) -> None:
    """Show an execution: why it stands where it stands, and its journal as a timeline."""
    from cli.report import report

    async with session.storage() as storage:
        stored = await find(storage, id)
        found = await report(storage, stored, silent_before=session.silent_before(storage))
    session.output.show(found.drawn(session.output.console), found.form())


async def why(session: Session, id: ExecutionId) -> None:
    """Say in one sentence what an execution waits for, or what is wrong and what to do.

    Also of a message to an entity or an item of a queue that has not ended, by its request id.
    """
    from cli.report import advice
    from engine import admin

    async with session.storage() as storage:
        now = database_now(storage)
        if (sentence := await _of_request(storage, id)) is not None:
            session.output.show(printable(readable(sentence, now)), {"id": id, "why": sentence})
            return
        stored = await find(storage, id)
        silent_before = session.silent_before(storage)
        info = await admin.describe(storage, stored, silent_before=silent_before)
        events = await admin.history(storage, stored.request_id)
    name = f"{info.workflow}/{info.id}"
    if session.output.as_json:
        session.output.line({"id": name, "status": str(info.status), "why": info.why})
    else:
        session.output.say(f"{name}, {info.status}: {readable(info.why, now)}")
        hint = advice(info, None if stored.status.finished else stored.waiting, events)
        if hint:
            session.output.say(f"to let it go on: {hint}")


async def _of_request(storage: "Storage", id: str) -> str | None:
    """Where a message or an item stands, if it is the id of one that has not ended."""
    from engine.core.ids import Snowflake
    from engine.place import standing

    if not (id.isascii() and id.isdecimal()) or int(id) >= 1 << 63:
        return None
    return await standing(storage, Snowflake(int(id)))


async def history(
    session: Session,
    id: ExecutionId,
    export: Annotated[
        bool,
        typer.Option(
            "--export",
            help="Write all that a replay needs, as lines of JSON: for 'outlast replay'.",
        ),
    ] = False,
) -> None:
    """Print the journal, event by event, as it is stored."""
    from cli import forms
    from engine import admin
    from engine.history import history_of

    if export:
        async with session.storage() as storage:
            found = await history_of(storage, (await find(storage, id)).request_id)
        sys.stdout.write(found.export())
        return
    async with session.storage() as storage:
        events = await admin.history(storage, (await find(storage, id)).request_id)
    session.output.table(
        events,
        form=forms.event,
        columns=["RUN", ">POS", "TIME", "KIND", "NAME", ">TRY", "OUTCOME", "PAYLOAD…"],
        row=_event_row,
        empty="its journal is empty: it has not begun, or has done nothing yet",
    )


async def tail(session: Session, id: ExecutionId) -> None:
    """Follow the journal, and end when the execution does."""
    from engine import admin

    seen = (0, 0)
    async with session.storage() as storage:
        stored = await find(storage, id)
        while True:
            # The state is read first, so that a finished one's journal is complete.
            state = await find(storage, name_of(stored))
            for event in await admin.history(storage, stored.request_id):
                if (event.run, event.position) > seen:
                    seen = event.run, event.position
                    _print_event(session, event, stored)
            if state.status.finished:
                break
            await asyncio.sleep(_FOLLOW)
        if not session.output.as_json:
            info = await admin.describe(storage, state)
            session.output.say(f"{name_of(stored)} has ended: {info.why}")


def _row(info: "ExecutionInfo", now: "datetime") -> Sequence["RenderableType"]:
    from rich.text import Text

    from engine.core.status import Status

    status = str(info.status)
    end = info.finished_at or now
    took = brief(end - info.started_at) if info.started_at else ""
    return [
        Text(f"{info.workflow}/{info.id}"),
        Text(status, style=STATUS_STYLES.get(status, "")),
        ago(info.created_at, now),
        took,
        Text("" if info.status is Status.SUCCEEDED else _in_short(info, now)),
    ]


def _in_short(info: "ExecutionInfo", now: "datetime") -> str:
    """What a line of ``ls`` has room for."""
    if info.error is not None:
        said = printable(str(info.error.root))
        return said.partition("\n")[0]
    return readable(info.why.removeprefix("it "), now, short=True)


def _event_row(event: "JournalEvent") -> Sequence["RenderableType"]:
    from rich.text import Text

    return [
        str(event.run),
        str(event.position),
        clock_time(event.at, milliseconds=True),
        event.kind.name.lower(),
        Text(f"{event.name}#{event.ordinal + 1}"),
        str(event.attempt),
        event.outcome.name.lower(),
        Text("" if event.payload is None else _short(event.payload)),
    ]


def _print_event(session: Session, event: "JournalEvent", execution: "StoredExecution") -> None:
    if session.output.as_json:
        from cli import forms

        session.output.line(forms.event(event))
        return
    offset = event.at - (execution.started_at or execution.created_at)
    words = [
        f"{'+' + brief(offset):>8}",
        f"{event.kind.name.lower():9}",
        event.name + (f" (attempt {event.attempt})" if event.attempt > 1 else ""),
        "" if event.outcome.name == "OK" else event.outcome.name.lower().replace("_", " "),
        "" if event.payload is None else _short(event.payload),
    ]
    session.output.say("  ".join(word for word in words if word))


def _short(payload: object) -> str:
    """An error by its message, anything else as JSON."""
    return error_text(payload) or to_json(payload)
