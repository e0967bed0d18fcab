"""Crons: ``schedules`` and its ``show``, ``pause``, ``resume``, ``trigger``, ``backfill``."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cli import keeper
from cli.command import add_group
from cli.durations import ago, brief, clock_time, parse_time
from cli.exits import CommandError, UsageError
from cli.output import facts, printable, table
from cli.session import Session, database_now

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import RenderableType

    from engine.core.ids import RunnerId
    from engine.schedule import FireInfo, Schedule, ScheduleInfo
    from engine.storage.protocol import RunnerRow

T = TypeVar("T")
PANEL = "Operate"
Name = Annotated[str, typer.Argument(metavar="NAME", help="The cron's name, as listed.")]
Timeout = Annotated[
    str,
    typer.Option(
        "--timeout", "-t", help="How long to wait for the cron's runner (30s).", metavar="SPAN"
    ),
]
_MOST = (1 << 63) - 1
_STATE_STYLES = {"paused": "yellow", "unowned": "red", "running": "cyan"}
_FIRE_STYLES = {"succeeded": "green", "failed": "red", "running": "cyan", "missed": "red"}


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    add_group(app, schedules, show, pause, resume, trigger, backfill, panel=PANEL)


async def schedules(session: Session) -> None:
    """List the crons: when they fire next, and what became of the last instant."""
    from cli import forms
    from engine import schedule

    async with session.storage() as storage:
        infos = await schedule.schedules(storage)
        last = {info.name: await schedule.fires(storage, info.name, limit=1) for info in infos}
        now = database_now(storage)
    session.output.table(
        infos,
        form=lambda info: forms.schedule(info, state=_state(info)),
        columns=["NAME", "SCHEDULE", "ZONE", "STATE", "NEXT", "LAST", "STARTS…"],
        row=lambda info: _row(info, last[info.name], now),
        empty="no crons yet: a runner that serves one makes it known",
    )


async def show(
    session: Session,
    name: Name,
    limit: Annotated[
        int,
        typer.Option(
            "--limit", "-n", help="So many of the latest instants at most.", min=1, max=_MOST
        ),
    ] = 20,
) -> None:
    """Show a cron: its rules, where it stands, and what became of its latest instants."""
    from cli import forms
    from engine import schedule

    async with session.storage() as storage:
        (info,) = await schedule.schedules(storage, name)
        fires = await schedule.fires(storage, name, limit=limit)
        runners = {row.id: row for row in await storage.runners()}
        now = database_now(storage)
    form = forms.schedule(info, state=_state(info))
    form["fires"] = [forms.fire(fire, state=_fire_state(fire)) for fire in fires]
    session.output.show(_drawn(info, fires, runners, now), form)


async def pause(
    session: Session,
    name: Name,
    reason: Annotated[
        str, typer.Option("--reason", "-r", help="Why; shown until it is resumed.", metavar="TEXT")
    ] = "",
    timeout: Timeout = "30s",
) -> None:
    """Fire nothing of a cron until it is resumed; what runs goes on."""
    await _ask(session, name, lambda schedule: schedule.pause(reason), timeout)
    keeper.tell(session, name, {"paused": True}, f"{name} is paused")


async def resume(session: Session, name: Name, timeout: Timeout = "30s") -> None:
    """Fire a paused cron again, from now on."""
    await _ask(session, name, lambda schedule: schedule.resume(), timeout)
    keeper.tell(session, name, {"paused": False}, f"{name} fires again")


async def trigger(
    session: Session,
    name: Name,
    id: Annotated[
        str | None,
        typer.Option("--id", help="Triggers of one id run once.", metavar="ID"),
    ] = None,
    timeout: Timeout = "30s",
) -> None:
    """Run a cron now, as far as its overlap policy allows. Exit code 1 when it does not."""
    from cli import forms
    from engine.core.names import entity_id

    once = None if id is None else entity_id(id, what="the id")
    fire = await _ask(session, name, lambda schedule: schedule.trigger(id=once), timeout)
    state = _fire_state(fire)
    if session.output.as_json:
        session.output.line({"name": name, **forms.fire(fire, state=state)})
    elif state == "running":
        session.output.say(f"{name} runs for {clock_time(fire.instant, milliseconds=True)}")
    elif state == "waiting":
        session.output.say(f"{name} runs as soon as the run before it has ended")
    if state not in {"running", "waiting"}:
        raise CommandError(f"{name} was not started ({state}): 'outlast schedules show {name}'")


async def backfill(
    session: Session,
    name: Name,
    first: Annotated[str, typer.Argument(metavar="FROM", help="The first instant (ISO 8601).")],
    last: Annotated[str, typer.Argument(metavar="TO", help="The last instant (ISO 8601).")],
    timeout: Timeout = "30s",
) -> None:
    """Make up for the instants of a time that a cron has not run for."""
    begin, end = parse_time(first), parse_time(last)
    if end < begin:
        raise UsageError(f"{last} is before {first}: write FROM, then TO")
    count = await _ask(session, name, lambda schedule: schedule.backfill(begin, end), timeout)
    instants = "1 instant" if count == 1 else f"{count} instants"
    keeper.tell(session, name, {"instants": count}, f"{name} makes up for {instants}")


async def _ask(
    session: Session, name: str, change: "Callable[[Schedule], Awaitable[T]]", timeout: str
) -> T:
    from engine.schedule import Schedule

    return await keeper.ask(session, lambda node: Schedule(node, name), change, timeout)


# --- in words ---------------------------------------------------------------------------------


def _state(info: "ScheduleInfo") -> str:
    if info.paused:
        return "paused"
    if info.runner is None:
        return "unowned"
    return "running" if info.running else "idle"


def _fire_state(fire: "FireInfo") -> str:
    """What became of an instant, in one or two words."""
    from engine.core import reply

    if fire.outcome is None:
        return "waiting"
    if fire.outcome:
        return fire.outcome.name.lower().replace("_", " ")
    match fire.exit:
        case None:
            return "running"
        case reply.Success(b'"too late"'):
            return "too late"
        case reply.Success():
            return "succeeded"
        case reply.Failure() | reply.Defect():
            return "failed"
        case reply.Interrupted() | reply.Terminated():
            return "interrupted"


def _row(
    info: "ScheduleInfo", last: "Sequence[FireInfo]", now: "datetime"
) -> Sequence["RenderableType"]:
    from rich.text import Text

    state = _state(info)
    return [
        Text(info.name),
        Text(info.schedule),
        Text(info.timezone),
        Text(state, style=_STATE_STYLES.get(state, "")),
        ago(info.next_at, now) if info.next_at else "",
        f"{_fire_state(last[0])}, {ago(last[0].instant, now)}" if last else "",
        Text(info.starts),
    ]


def _drawn(
    info: "ScheduleInfo",
    fires: "Sequence[FireInfo]",
    runners: "dict[RunnerId, RunnerRow]",
    now: "datetime",
) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    known = facts((name, printable(value)) for name, value in _facts(info, runners, now))
    if not fires:
        return Group(Text(info.name), "", known, "", "no instant has come yet")
    rows = [_fire_row(fire, now) for fire in fires]
    return Group(
        Text(info.name), "", known, "", table(["INSTANT", "", "STATE", "REQUEST", "ERROR…"], rows)
    )


def _facts(
    info: "ScheduleInfo", runners: "dict[RunnerId, RunnerRow]", now: "datetime"
) -> Sequence[tuple[str, str]]:
    runner = None if info.runner is None else runners.get(info.runner)
    limit = info.skip_if_older_than
    facts = [
        ("schedule", f"{info.schedule}  ({info.timezone})"),
        ("starts", info.starts),
        ("overlap", info.overlap.value),
        ("catches up", f"with what is at most {brief(info.catch_up)} late"),
        ("begins", "however late" if limit is None else f"at most {brief(limit)} late"),
        ("state", _state(info) + (f": {info.reason}" if info.reason else "")),
        ("next", _when(info.next_at, now) if info.next_at else "never"),
        ("kept by", keeper.owner(info.runner, runner)),
        ("shard", str(info.shard)),
    ]
    if info.buffered is not None:
        facts.append(("waits", _when(info.buffered, now)))
    facts.extend(
        ("makes up for", f"{clock_time(first)} to {clock_time(last)}")
        for first, last in info.backfill
    )
    return facts


def _when(when: "datetime", now: "datetime") -> str:
    return f"{clock_time(when)}, {ago(when, now)}"


def _fire_row(fire: "FireInfo", now: "datetime") -> Sequence["RenderableType"]:
    from rich.text import Text

    from engine.core import reply

    state = _fire_state(fire)
    error = ""
    if isinstance(fire.exit, reply.Failure | reply.Defect):
        error = printable(str(fire.exit.error)).partition("\n")[0]
    return [
        f"{clock_time(fire.instant)} ({ago(fire.instant, now)})",
        "manual" if fire.manual else "",
        Text(state, style=_FIRE_STYLES.get(state, "")),
        "" if fire.request_id is None else str(fire.request_id),
        Text(error),
    ]
