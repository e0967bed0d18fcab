"""Queues: ``queues`` and its ``show``, ``pause``, ``resume``, ``limit``."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from cli import keeper
from cli.command import add_group
from cli.durations import ago, brief, parse_duration
from cli.exits import UsageError
from cli.output import facts, printable
from cli.session import Session, database_now

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import RenderableType

    from engine.cluster.limits import Rate
    from engine.core.ids import RunnerId
    from engine.queues import LimitChanges, LimitName, QueueHandle, QueueInfo
    from engine.storage.protocol import RunnerRow

T = TypeVar("T")
PANEL = "Operate"
Name = Annotated[str, typer.Argument(metavar="NAME", help="The queue's name, as listed.")]
Timeout = Annotated[
    str,
    typer.Option(
        "--timeout", "-t", help="How long to wait for the queue's runner (30s).", metavar="SPAN"
    ),
]
_STATE_STYLES = {"paused": "yellow", "unowned": "red", "unserved": "red", "busy": "cyan"}
_BACK = "default"


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    add_group(app, queues, show, pause, resume, limit, panel=PANEL)


async def queues(session: Session) -> None:
    """List the queues: what waits, is delayed and runs, since when, and within which limits."""
    from cli import forms
    from engine.queues import queues as all_queues

    async with session.storage() as storage:
        infos = await all_queues(storage)
        runners = {row.id: row for row in await storage.runners()}
        now = database_now(storage)
    session.output.table(
        infos,
        form=lambda info: forms.queue(info, state=_state(info, runners)),
        columns=["NAME", "STATE", ">WAITING", ">DELAYED", ">RUNNING", "OLDEST", "LIMITS…"],
        row=lambda info: _row(info, _state(info, runners), now),
        empty="no queues yet: a runner that serves one makes it known",
    )


async def show(session: Session, name: Name) -> None:
    """Show a queue: its limits, where they come from, and what it has to do."""
    from cli import forms
    from engine.queues import queues as all_queues

    async with session.storage() as storage:
        (info,) = await all_queues(storage, name)
        runners = {row.id: row for row in await storage.runners()}
        now = database_now(storage)
    session.output.show(_drawn(info, runners, now), forms.queue(info, state=_state(info, runners)))


async def pause(
    session: Session,
    name: Name,
    reason: Annotated[
        str, typer.Option("--reason", "-r", help="Why; shown until it is resumed.", metavar="TEXT")
    ] = "",
    timeout: Timeout = "30s",
) -> None:
    """Begin nothing of a queue until it is resumed; what runs goes on, and what comes waits."""
    await _ask(session, name, lambda queue: queue.pause(reason), timeout)
    keeper.tell(session, name, {"paused": True}, f"{name} is paused")


async def resume(session: Session, name: Name, timeout: Timeout = "30s") -> None:
    """Let a paused queue go on."""
    await _ask(session, name, lambda queue: queue.resume(), timeout)
    keeper.tell(session, name, {"paused": False}, f"{name} goes on")


async def limit(
    session: Session,
    name: Name,
    concurrency: Annotated[
        str | None,
        typer.Option("--concurrency", "-c", metavar="N", help="Items at once (0: any number)."),
    ] = None,
    per_key: Annotated[
        str | None, typer.Option("--per-key", metavar="N", help="Items of each key at once.")
    ] = None,
    per_runner: Annotated[
        str | None, typer.Option("--per-runner", metavar="N", help="Items on each runner at once.")
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(
            "--rate", metavar="N/SPAN", help="How often one begins: 10/s, 100/1m, 100/1m+5 or none."
        ),
    ] = None,
    timeout: Timeout = "30s",
) -> None:
    """Set limits of a queue while it runs; 'default' takes that of its class again.

    What is admitted already goes on.
    """
    given = {"concurrency": concurrency, "per_key": per_key, "per_runner": per_runner, "rate": rate}
    chosen = {name: text for name, text in given.items() if text is not None}
    if not chosen:
        raise UsageError("say which limit: --concurrency, --per-key, --per-runner or --rate")
    back = [each for each in chosen if chosen[each] == _BACK]
    changes = _changes({each: text for each, text in chosen.items() if text != _BACK})

    async def change(queue: "QueueHandle") -> None:
        if changes:
            await queue.limit(**changes)
        if back:
            await queue.reset(*_names(back))

    await _ask(session, name, change, timeout)
    keeper.tell(session, name, {"changed": sorted(chosen)}, f"{name} has other limits now")


def _changes(chosen: dict[str, str]) -> "LimitChanges":
    from engine.core.errors import ConfigurationError

    changes: LimitChanges = {}
    try:
        if "concurrency" in chosen:
            changes["concurrency"] = _number(chosen["concurrency"])
        if "per_key" in chosen:
            changes["per_key"] = _number(chosen["per_key"])
        if "per_runner" in chosen:
            changes["per_runner"] = _number(chosen["per_runner"])
        if "rate" in chosen:
            changes["rate"] = _rate(chosen["rate"])
    except ConfigurationError as error:
        raise UsageError(str(error)) from error
    return changes


def _names(back: Sequence[str]) -> "list[LimitName]":
    from engine.queues import LIMIT_NAMES

    return [name for name in LIMIT_NAMES if name in back]


def _number(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or len(text) > 10:
        raise UsageError(f"{text!r} is not a limit: write a whole number, 0 for no limit")
    return int(text)


def _rate(text: str) -> "Rate | None":
    from engine.cluster.limits import Rate

    if text == "none":
        return None
    often, _, burst = text.partition("+")
    count, slash, span = often.partition("/")
    if not slash:
        raise UsageError(f"{text!r} is not a rate: write 10/s, 100/1m, 100/1m+5 or none")
    per = parse_duration(span if span[:1].isdigit() else f"1{span}")
    return Rate(_number(count), per, _number(burst) if burst else 1)


async def _ask(
    session: Session, name: str, change: "Callable[[QueueHandle], Awaitable[T]]", timeout: str
) -> T:
    from engine.queues import QueueHandle

    return await keeper.ask(session, lambda node: QueueHandle(node, name), change, timeout)


# --- in words ---------------------------------------------------------------------------------


def _state(info: "QueueInfo", runners: "dict[RunnerId, RunnerRow]") -> str:
    if info.paused:
        return "paused"
    if info.runner is None:
        return "unowned"
    owner = runners.get(info.runner)
    if owner is not None and info.name not in owner.types:
        return "unserved"
    return "busy" if info.waiting or info.running else "idle"


def _limits(info: "QueueInfo") -> list[str]:
    """Each limit that there is, with a star where it is not that of the class."""
    limits, said = info.limits, list[str]()
    for name, words in (
        ("concurrency", "at once"),
        ("per_key", "per key"),
        ("per_runner", "per runner"),
    ):
        number: int = getattr(limits, name)
        star = "*" if name in info.changed else ""
        if number or star:
            said.append(f"{number or 'any'} {words}{star}")
    rate, star = limits.rate, "*" if "rate" in info.changed else ""
    if rate is not None:
        burst = f", {rate.burst} in a burst" if rate.burst > 1 else ""
        said.append(f"{rate.limit} per {brief(rate.per)}{burst}{star}")
    elif star:
        said.append(f"any rate{star}")
    return said


def _row(info: "QueueInfo", state: str, now: "datetime") -> Sequence["RenderableType"]:
    from rich.text import Text

    return [
        Text(info.name),
        Text(state, style=_STATE_STYLES.get(state, "")),
        str(info.waiting),
        str(info.delayed),
        str(info.running),
        ago(info.oldest, now) if info.oldest else "",
        Text(", ".join(_limits(info)) or "none"),
    ]


def _drawn(
    info: "QueueInfo", runners: "dict[RunnerId, RunnerRow]", now: "datetime"
) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    known = facts((name, printable(value)) for name, value in _facts(info, runners, now))
    return Group(Text(info.name), "", known)


def _facts(
    info: "QueueInfo", runners: "dict[RunnerId, RunnerRow]", now: "datetime"
) -> Sequence[tuple[str, str]]:
    runner = None if info.runner is None else runners.get(info.runner)
    state = _state(info, runners)
    owner = keeper.owner(info.runner, runner)
    if state == "unserved":
        owner += ", which does not serve it: register it with all runners of its group"
    oldest = "" if info.oldest is None else f", the oldest since {ago(info.oldest, now)}"
    stars = "  (*: set by hand; 'default' takes it back)" if info.changed else ""
    return [
        ("state", state + (f": {info.reason}" if info.reason else "")),
        ("limits", (", ".join(_limits(info)) or "none") + stars),
        ("waiting", f"{info.waiting}{oldest}"),
        ("delayed", str(info.delayed)),
        ("running", str(info.running)),
        ("kept by", owner),
        ("shard", str(info.shard)),
    ]
