"""Look at the cluster: ``runners``, ``shards``, ``doctor``."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import add_command
from cli.durations import ago, readable
from cli.exits import ExitCode
from cli.output import table
from cli.session import Session, database_now

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from rich.console import RenderableType

    from engine.core.ids import RunnerId
    from engine.diagnosis import Finding
    from engine.storage.protocol import RunnerRow, ShardRow

PANEL = "Operate"
_STATE_STYLES = {"live": "green", "draining": "yellow", "silent": "red", "ended": "dim"}
_SEVERITY_STYLES = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    for function in (runners, shards, doctor):
        add_command(app, function, panel=PANEL)


async def runners(
    session: Session,
    all: Annotated[
        bool, typer.Option("--all", help="Also those that ended within the last day.")
    ] = False,
) -> None:
    """List the runners: where they are, what they serve, whether they live."""
    from cli import forms

    limit = session.settings().time_to_live
    async with session.storage() as storage:
        rows = await storage.runners()
        owned: dict[RunnerId | None, int] = defaultdict(int)
        for shard in await storage.shards():
            owned[shard.runner] += 1
        now = database_now(storage)
    session.output.table(
        [row for row in rows if all or row.died_at is None],
        form=lambda row: forms.runner(row, state=_state(row, now, limit), shards=owned[row.id]),
        columns=["RUNNER", "STATE", ">SHARDS", "GROUPS", "VERSION", "STARTED", "BEAT", "SERVES…"],
        row=lambda row: _runner_row(row, now=now, limit=limit, shards=owned[row.id]),
        empty="no runner is live: 'outlast run APP' starts one",
    )


async def shards(
    session: Session,
    all: Annotated[bool, typer.Option("--all", help="A line for each shard.")] = False,
) -> None:
    """Show which runner owns how many shards of each group."""
    from cli import forms

    async with session.storage() as storage:
        rows = await storage.shards()
        names = {row.id: f"{row.host}:{row.pid}" for row in await storage.runners()}
        now = database_now(storage)
    if all or session.output.as_json:
        session.output.table(
            rows,
            form=forms.shard,
            columns=["SHARD", "OWNER", ">EPOCH", "SINCE"],
            row=lambda row: _shard_row(row, names, now),
            empty=_NO_SHARDS,
        )
        return
    held: dict[tuple[str, RunnerId | None], list[ShardRow]] = defaultdict(list)
    for row in rows:
        held[row.shard.group, row.runner].append(row)
    session.output.table(
        sorted(held.items(), key=lambda item: (item[0][0], item[0][1] is None, -len(item[1]))),
        form=lambda _: {},
        columns=["GROUP", "OWNER", ">SHARDS", "LAST CHANGE"],
        row=lambda item: _holder_row(item[0], item[1], names, now),
        empty=_NO_SHARDS,
    )


async def doctor(session: Session) -> None:
    """Look for what is wrong with the database and the cluster, and say how to fix it.

    Exit code 1 when something is.
    """
    from cli import forms
    from engine.diagnosis import Severity, examine

    storage = session.unchecked_storage()
    try:
        limit = session.settings().time_to_live
        findings = await examine(storage, time_to_live=limit)
        now = database_now(storage)
    finally:
        await storage.close()
    drawn = table(["", "WHAT", "FINDING"], [_finding_row(finding, now) for finding in findings])
    session.output.show(drawn, *(forms.finding(finding) for finding in findings))
    if any(finding.severity is Severity.WRONG for finding in findings):
        raise typer.Exit(ExitCode.FAILED)


_NO_SHARDS = "there are no shards yet: the first runner or start makes them"


def _state(row: "RunnerRow", now: "datetime", limit: "timedelta") -> str:
    if row.died_at is not None:
        return "ended"
    if row.beat_at is not None and now - row.beat_at > limit:
        return "silent"
    return "draining" if row.draining else "live"


def _runner_row(
    row: "RunnerRow", *, now: "datetime", limit: "timedelta", shards: int
) -> Sequence["RenderableType"]:
    from rich.text import Text

    state = _state(row, now, limit)
    return [
        Text(f"{row.host}:{row.pid}"),
        Text(state, style=_STATE_STYLES[state]),
        str(shards),
        Text(", ".join(row.groups)),
        Text(row.version),
        ago(row.started_at, now) if row.started_at else "",
        ago(row.beat_at, now) if row.beat_at else "",
        Text(", ".join(sorted(row.types))),
    ]


def _shard_row(
    row: "ShardRow", names: "dict[RunnerId, str]", now: "datetime"
) -> Sequence["RenderableType"]:
    return [
        str(row.shard),
        _owner(row.runner, names),
        str(row.epoch),
        ago(row.acquired_at, now) if row.acquired_at and row.runner else "",
    ]


def _holder_row(
    holder: "tuple[str, RunnerId | None]",
    rows: "Sequence[ShardRow]",
    names: "dict[RunnerId, str]",
    now: "datetime",
) -> Sequence["RenderableType"]:
    group, runner = holder
    latest = max((row.acquired_at for row in rows if row.acquired_at), default=None)
    since = ago(latest, now) if latest and runner else ""
    return [group, _owner(runner, names), str(len(rows)), since]


def _owner(runner: "RunnerId | None", names: "dict[RunnerId, str]") -> "RenderableType":
    from rich.text import Text

    if runner is None:
        return Text("nobody", style="red")
    return Text(names.get(runner, f"{runner} (unknown)"))


def _finding_row(finding: "Finding", now: "datetime") -> Sequence["RenderableType"]:
    from rich.text import Text

    word = finding.severity.value
    text = Text(readable(finding.message, now))
    if finding.fix:
        text.append(f"\nfix: {finding.fix}", style="bold")
    return [Text(word, style=_SEVERITY_STYLES[word]), finding.topic, text]
