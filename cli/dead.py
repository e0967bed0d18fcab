"""Dead letters: ``dead``, ``dead show``, ``dead retry``."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import add_group
from cli.durations import ago, clock_time
from cli.exits import CommandError, UsageError
from cli.output import facts, printable, to_json
from cli.session import Session, database_now

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import RenderableType

    from engine.core.errors import ErrorDetails
    from engine.core.ids import Snowflake
    from engine.core.outcome import DeadLetterInfo
    from engine.storage.entities import DeadFilter

PANEL = "Operate"
_BATCH = 500

Type = Annotated[
    str | None, typer.Option("--type", "-t", help="Of this entity type only.", metavar="NAME")
]
Id = Annotated[
    str | None, typer.Option("--id", "-i", help="Of the entity of this id only.", metavar="ID")
]
Request = Annotated[
    str, typer.Argument(metavar="REQUEST", help="The dead letter's request id, as listed.")
]


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    add_group(app, dead, show, retry, panel=PANEL)


async def dead(
    session: Session,
    type: Type = None,
    id: Id = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.", min=1)] = 50,
    after: Annotated[
        str | None,
        typer.Option(
            "--after", help="Only older ones than this: the last line before.", metavar="REQUEST"
        ),
    ] = None,
) -> None:
    """List the messages to entities that no delivery got an answer of, youngest first."""
    from cli import forms
    from engine.dead_letters import dead_letters

    wanted = _filter(type, id, after=None if after is None else _request_id(after))
    async with session.storage() as storage:
        found = [letter async for letter in dead_letters(storage, wanted, limit=limit)]
        now = database_now(storage)
    session.output.table(
        found,
        form=forms.dead_letter,
        columns=["REQUEST", "ENTITY", "METHOD", "SENT", "ERROR…"],
        row=lambda letter: _row(letter, now),
        empty="no dead letters" + (" match" if type or id or after else ""),
    )
    if len(found) == limit and not session.output.as_json:
        session.output.note(f"there may be more: --after {found[-1].request_id}")


async def show(session: Session, request: Request) -> None:
    """Show a dead letter: its payload, and the error with its traceback."""
    from cli import forms
    from engine.dead_letters import find

    async with session.storage() as storage:
        letter = await find(storage, _request_id(request))
        now = database_now(storage)
    session.output.show(_drawn(letter, now), forms.dead_letter(letter))


async def retry(
    session: Session,
    requests: Annotated[
        list[str] | None,
        typer.Argument(metavar="REQUEST", help="The request ids of the dead letters, as listed."),
    ] = None,
    all: Annotated[
        bool, typer.Option("--all", help="All dead letters, or all of --type and --id.")
    ] = False,
    type: Type = None,
    id: Id = None,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="With --all: do not ask how many are meant.")
    ] = False,
) -> None:
    """Deliver dead letters again; their callers' answer will be the new one."""
    from engine import dead_letters

    if bool(requests) == all:
        raise UsageError("name the dead letters by their request ids, or give --all")
    if not all and (type or id):
        raise UsageError("--type and --id go with --all")
    named = list(dict.fromkeys(_request_id(each) for each in requests or []))
    async with session.node() as node:
        if all:
            every = dead_letters.dead_letters(node.storage, _filter(type, id))
            found = [letter.request_id async for letter in every]
            if found and not yes:
                _confirm(len(found))
        else:
            found = [(await dead_letters.find(node.storage, each)).request_id for each in named]
        for start in range(0, len(found), _BATCH):
            await dead_letters.retry(node, found[start : start + _BATCH])
    _told(session, found)


def _filter(type: str | None, id: str | None, after: "Snowflake | None" = None) -> "DeadFilter":
    from engine.storage.entities import DeadFilter

    return DeadFilter(entity_type=type, entity_id=id, after=after)


def _request_id(text: str) -> "Snowflake":
    from engine.core.ids import Snowflake

    if not (text.isascii() and text.isdigit() and int(text) < 1 << 63):
        raise UsageError(
            f"{text!r} is not a request id; 'outlast dead' lists those of dead letters"
        )
    return Snowflake(int(text))


def _confirm(number: int) -> None:
    """Ask whether so many are meant; where nobody can be asked, they are not."""
    what = f"{number} dead letter{'s' if number > 1 else ''}"
    if not sys.stdin.isatty():
        raise UsageError(f"--all would deliver {what} again: confirm that with --yes")
    sys.stderr.write(f"deliver {what} again? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CommandError("nothing was delivered again")


def _told(session: Session, requests: "Sequence[Snowflake]") -> None:
    if session.output.as_json:
        for request_id in requests:
            session.output.line({"request_id": str(request_id), "retried": True})
    elif requests:
        letters = "dead letter" if len(requests) == 1 else "dead letters"
        session.output.say(f"{len(requests)} {letters} will be delivered again")
    else:
        session.output.say("no dead letters match")


def _row(letter: "DeadLetterInfo", now: "datetime") -> Sequence["RenderableType"]:
    from rich.text import Text

    return [
        str(letter.request_id),
        Text(printable(f"{letter.entity}/{letter.id}")),
        Text(printable(letter.method)),
        ago(letter.sent_at, now),
        Text(printable(str(letter.error)).partition("\n")[0]),
    ]


def _drawn(letter: "DeadLetterInfo", now: "datetime") -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    rows = [
        ("method", printable(letter.method)),
        ("sent", f"{clock_time(letter.sent_at)}, {ago(letter.sent_at, now)}"),
        ("shard", str(letter.shard)),
        ("payload", printable(to_json(letter.payload))),
        ("next", f"outlast dead retry {letter.request_id}"),
    ]
    head = Text(printable(f"{letter.entity}/{letter.id}  request {letter.request_id}"))
    return Group(head, "", facts(rows), "", _error(letter.error))


def _error(error: "ErrorDetails") -> "RenderableType":
    """The error and what caused it, each with its traceback."""
    from rich.text import Text

    text = Text(printable(str(error)), style="red")
    cause: ErrorDetails | None = error
    while cause is not None:
        if cause is not error:
            text.append(printable(f"\ncaused by {cause}"), style="red")
        if cause.traceback:
            text.append("\n" + printable(cause.traceback.rstrip()), style="dim")
        cause = cause.cause
    return text
