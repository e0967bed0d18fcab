"""Look at entities and their durable state: ``entities``, ``state``."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli import arguments
from cli.command import add_command
from cli.durations import ago, clock_time, parse_duration
from cli.exits import CommandError, ExitCode, UsageError
from cli.output import printable
from cli.session import Session, database_now

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import RenderableType

    from engine.storage.entities import EntityRow

PANEL = "Look"
EntityName = Annotated[
    str, typer.Argument(metavar="TYPE/ID", help="The entity: its type and its id.")
]


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    for function in (entities, state):
        add_command(app, function, panel=PANEL)


async def entities(
    session: Session,
    type: Annotated[
        str | None, typer.Argument(metavar="[TYPE]", help="Of this type only.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", help="At most so many.", min=1)] = 50,
    after: Annotated[
        str | None,
        typer.Option("--after", help="Only those behind this: the last line.", metavar="TYPE/ID"),
    ] = None,
) -> None:
    """List the entities that have a state or waiting messages, by type and id."""
    from cli import forms
    from engine.entities import entities as listed
    from engine.storage.entities import EntityFilter

    wanted = EntityFilter(entity_type=type, after=None if after is None else _named(after))
    async with session.storage() as storage:
        found = [row async for row in listed(storage, wanted, limit=limit)]
        runners = {row.id: f"{row.host}:{row.pid}" for row in await storage.runners()}
        now = database_now(storage)
    session.output.table(
        found,
        form=forms.entity,
        columns=["ENTITY", ">WAITING", "OLDEST", ">VERSION", "SAVED", "SHARD", "OWNER"],
        row=lambda row: _row(row, runners.get(row.runner) if row.runner else None, now),
        empty="no entity has a state or waiting messages" + (f" of type {type}" if type else ""),
    )
    if len(found) == limit and not session.output.as_json:
        last = found[-1]
        session.output.note(f"there may be more: --after {last.entity_type}/{last.entity_id}")


async def state(
    session: Session,
    id: EntityName,
    set: Annotated[
        str | None,
        typer.Option(
            "--set", help="Replace it by this JSON, or - for standard input.", metavar="JSON"
        ),
    ] = None,
    version: Annotated[
        int | None,
        typer.Option(
            "--version",
            help="With --set: the version that you saw, 0 for none; at another one, nothing is"
            " replaced.",
            min=0,
            metavar="N",
        ),
    ] = None,
    timeout: Annotated[
        str, typer.Option("--timeout", "-t", help="With --set: how long to wait.", metavar="SPAN")
    ] = "30s",
) -> None:
    """Show the state of an entity, or replace it.

    It is replaced by the entity's owner, between two messages. Exit code 1 when its version is
    another by then or the JSON does not fit its model, 4 when no owner had done it in time.
    """
    entity_type, entity_id = _named(id)
    if (set is None) != (version is None):
        raise UsageError(
            "--set and --version go together: 'outlast state TYPE/ID' shows the version there is"
        )
    if set is None or version is None:
        await _show(session, entity_type, entity_id)
    else:
        value = arguments.json_payload(set, what="the state")
        await _replace(session, entity_type, entity_id, version, value, timeout)


async def _show(session: Session, entity_type: str, entity_id: str) -> None:
    from rich.console import Group
    from rich.json import JSON
    from rich.text import Text

    from cli import forms
    from cli.output import to_json
    from engine.admin import readable
    from engine.entities import state_of

    async with session.storage() as storage:
        stored = await state_of(storage, entity_type, entity_id)
        now = database_now(storage)
    saved = f"saved {clock_time(stored.saved_at)}, {ago(stored.saved_at, now)}"
    head = Text(printable(f"{entity_type}/{entity_id}  version {stored.version}, {saved}"), "bold")
    drawn = Group(head, Text(), JSON(to_json(readable(stored.payload)), highlight=False))
    session.output.show(drawn, forms.state(stored))


async def _replace(
    session: Session, entity_type: str, entity_id: str, version: int, value: bytes, timeout: str
) -> None:
    from engine.entities import ask_to_replace_state, replaced

    name = printable(f"{entity_type}/{entity_id}")
    limit = parse_duration(timeout).total_seconds()
    async with session.node() as node:
        request_id = await ask_to_replace_state(
            node, entity_type, entity_id, version=version, value=value
        )
        try:
            async with asyncio.timeout(limit):
                exit = await node.replies.wait(request_id)
        except TimeoutError:
            raise CommandError(
                f"{name} has not answered within {timeout}; its owner replaces the state as soon"
                f" as it can, if it is at version {version} still: 'outlast entities"
                f" {entity_type}' shows what waits",
                ExitCode.TIMED_OUT,
            ) from None
    new = replaced(entity_type, entity_id, exit)
    if session.output.as_json:
        session.output.line({"entity": entity_type, "id": entity_id, "version": new})
    elif new == version:
        session.output.say(f"{name} was like that before, at version {version}")
    else:
        session.output.say(f"{name} is at version {new} now")


def _named(name: str) -> tuple[str, str]:
    from engine.core.names import entity_id as stored_id

    entity_type, slash, entity_id = name.partition("/")
    if not (entity_type and slash and entity_id):
        raise UsageError(f"{name!r} does not name an entity: write TYPE/ID, such as Cart/c-1")
    return entity_type, stored_id(entity_id, what="the id")


def _row(row: "EntityRow", owner: str | None, now: "datetime") -> Sequence["RenderableType"]:
    from rich.text import Text

    from engine.core.ids import snowflake_time

    return [
        Text(printable(f"{row.entity_type}/{row.entity_id}")),
        str(row.waiting) if row.waiting else "",
        ago(snowflake_time(row.oldest), now) if row.oldest else "",
        "" if row.version is None else str(row.version),
        ago(row.saved_at, now) if row.saved_at else "",
        str(row.shard),
        Text(owner) if owner else Text("nobody" if row.runner is None else "unknown", style="red"),
    ]
