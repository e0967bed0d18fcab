"""Look at the cluster: ``runners``, ``shards``, ``doctor``."""

from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import add_command
from cli.durations import ago, brief, readable
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
    """List the runners: where they are, whether they live, what they have in hand and serve.

    The shards are those it owns now; entities and executions are those in its memory, and lanes
    its writing connections, as of its last heartbeat. It is full when there is no place in memory
    for another entity; items of queues go elsewhere meanwhile.
    """
    from cli import forms

    limit = session.settings().time_to_live
    async with session.storage() as storage:
        rows = await storage.runners()
        owned: dict[RunnerId | None, int] = defaultdict(int)
        for shard in await storage.shards():
            owned[shard.runner] += 1
        now = database_now(storage)
    rows = [row for row in rows if all or row.died_at is None]
    weighted = any(row.weight != 1 for row in rows)
    session.output.table(
        rows,
        form=lambda row: forms.runner(row, state=_state(row, now, limit), shards=owned[row.id]),
        columns=[
            *("RUNNER", "STATE", "BEAT", "GROUPS"),
            *([">WEIGHT"] if weighted else []),
            *(">SHARDS", ">LANES", ">ENTITIES", ">EXECUTIONS", "VERSION", "SERVES…"),
        ],
        row=lambda row: _runner_row(
            row, now=now, limit=limit, shards=owned[row.id], weighted=weighted
        ),
        empty="no runner is live: 'outlast run APP' starts one",
    )


async def shards(
    session: Session,
    all: Annotated[bool, typer.Option("--all", help="A line for each shard.")] = False,
) -> None:
    """Show which runner owns which shards of each group, and since which epoch."""
    from cli import forms

    async with session.storage() as storage:
        rows = await storage.shards()
        runners = await storage.runners()
        now = database_now(storage)
    names = {row.id: f"{row.host}:{row.pid}" for row in runners}
    if all or session.output.as_json or not rows:
        session.output.table(
            rows,
            form=forms.shard,
            columns=["SHARD", "OWNER", ">EPOCH", "SINCE"],
            row=lambda row: _shard_row(row, names, now),
            empty="there are no shards yet: the first runner or start makes them",
        )
    else:
        from cli.shard_map import shard_map

        console = session.output.console
        console.print(shard_map(rows, names, now=now, width=console.width), crop=False)
    for group in _unserved(rows, runners):
        session.output.note(
            f"no live runner serves group {group}, and what is on its shards waits:"
            f" 'outlast run APP --groups {group}' starts one"
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


def _unserved(rows: "Sequence[ShardRow]", runners: "Sequence[RunnerRow]") -> list[str]:
    """The groups that no live runner takes shards of."""
    live = (row for row in runners if row.died_at is None and not row.draining)
    served = {group for row in live for group in row.groups}
    return sorted({row.shard.group for row in rows} - served)


def _state(row: "RunnerRow", now: "datetime", limit: "timedelta") -> str:
    if row.died_at is not None:
        return "ended"
    if row.beat_at is not None and now - row.beat_at > limit:
        return "silent"
    return "draining" if row.draining else "live"


def _runner_row(
    row: "RunnerRow", *, now: "datetime", limit: "timedelta", shards: int, weighted: bool
) -> Sequence["RenderableType"]:
    from rich.text import Text

    state, load = _state(row, now, limit), row.load
    return [
        Text(f"{row.host}:{row.pid}"),
        Text(state, style=_STATE_STYLES[state]),
        brief(now - row.beat_at) if row.beat_at else "",
        Text(", ".join(row.groups)),
        *([f"{row.weight:g}"] if weighted else []),
        str(shards),
        "" if load is None else str(load.lanes),
        ""
        if load is None
        else Text(f"{load.entities}, full" if load.crowded else f"{load.entities}"),
        "" if load is None else str(load.executions),
        Text(row.version),
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
