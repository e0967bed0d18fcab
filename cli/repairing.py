"""End executions, pause them, let them go on: ``interrupt``, ``terminate``, ``retry``, ``pause``,
``resume``, each for one execution or for all that match; and ``prune``.
"""

from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from cli.bulk import Many, do_to_all, tell_all
from cli.command import add_command
from cli.durations import parse_duration
from cli.executions import find, name_of
from cli.exits import CommandError
from cli.session import Session, database_now
from cli.telling import tell, tell_on

if TYPE_CHECKING:
    from engine.storage.protocol import Storage

PANEL = "Act"
Reason = Annotated[str, typer.Option("--reason", "-r", help="Why; stored with it.", metavar="TEXT")]
Id = Annotated[
    str | None,
    typer.Argument(
        metavar="ID",
        help="The execution: Workflow/key, or its key. Without it, those that the options say.",
        show_default=False,
    ),
]
Target = Annotated[
    str | None,
    typer.Argument(
        metavar="ID|NAME",
        help="An execution, or the name of a workflow: all of it, also what is still to start."
        " Without it, the executions that the options say.",
        show_default=False,
    ),
]


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    for function in (interrupt, terminate, retry, pause, resume, prune):
        add_command(app, function, panel=PANEL)


async def interrupt(session: Session, many: Many, id: Id = None, reason: Reason = "") -> None:
    """Ask an execution to end early: its cleanup and compensations run."""
    from engine.core.status import Status
    from engine.workflow.tags import INTERRUPT

    if (one := many.one(id)) is None:
        await do_to_all(session, "interrupt", many, reason=reason)
        return
    stored, asked = await tell(session, one, INTERRUPT, reason)
    name = name_of(stored)
    if session.output.as_json:
        session.output.line({"id": name, "interrupted": asked})
    elif asked:
        session.output.say(f"asked {name} to end; 'outlast join {name}' waits for that")
    else:
        session.output.say(f"{name} had ended before")
    if asked and stored.status in (Status.BLOCKED, Status.PAUSED):
        session.output.note(f"it is {stored.status}, and ends once it is not: 'outlast why {name}'")


async def terminate(session: Session, many: Many, id: Id = None, reason: Reason = "") -> None:
    """End an execution here and now, also a blocked or paused one: no cleanup, no compensation."""
    from engine.workflow.tags import TERMINATE

    if (one := many.one(id)) is None:
        await do_to_all(session, "terminate", many, reason=reason)
        return
    stored, asked = await tell(session, one, TERMINATE, reason)
    name = name_of(stored)
    if session.output.as_json:
        session.output.line({"id": name, "terminated": asked})
    elif asked:
        session.output.say(f"{name} is ended by its runner; 'outlast poll {name}' shows it")
    else:
        session.output.say(f"{name} had ended before")


async def retry(session: Session, many: Many, id: Id = None) -> None:
    """Let an execution that failed, was ended or is blocked go on from its last good step."""
    from engine import repair
    from engine.core.errors import ConfigurationError, NotFound
    from engine.core.status import Status

    if (one := many.one(id)) is None:
        await do_to_all(session, "retry", many)
        return
    async with session.node() as node:
        stored = await find(node.storage, one)
        name = name_of(stored)
        if stored.status is not Status.BLOCKED and not stored.status.finished:
            raise CommandError(f"{name} goes on anyway: 'outlast why {name}' says where it stands")
        try:
            await repair.retry(node, stored)
        except (NotFound, ConfigurationError) as error:
            raise CommandError(str(error)) from error
    if session.output.as_json:
        session.output.line({"id": name, "retried": True})
    else:
        session.output.say(f"{name} goes on; 'outlast join {name}' waits for its result")


async def pause(session: Session, many: Many, target: Target = None, reason: Reason = "") -> None:
    """Let an execution, or all of a workflow, stand still: what runs ends, nothing is started."""
    from engine.workflow.tags import PAUSE

    if (one := many.one(target)) is None:
        await do_to_all(session, "pause", many, reason=reason)
        return
    await _stand(session, one, PAUSE, reason)


async def resume(session: Session, many: Many, target: Target = None, reason: Reason = "") -> None:
    """Let an execution, or all of a workflow, go on after a pause."""
    from engine.workflow.tags import RESUME

    if (one := many.one(target)) is None:
        await do_to_all(session, "resume", many, reason=reason)
        return
    await _stand(session, one, RESUME, reason)


async def prune(
    session: Session,
    many: Many,
    older_than: Annotated[
        str | None,
        typer.Option(help="That ended longer ago than this (30d, 12h).", metavar="SPAN"),
    ] = None,
) -> None:
    """Delete executions that have ended, with their history; their keys can be started anew.

    Runners do so by themselves, as the settings say; this is for the rest.
    """
    from engine import bulk

    if older_than is None:
        many.one(None)  # something has to say which
    age = timedelta(0) if older_than is None else parse_duration(older_than)
    async with session.storage() as storage:
        now = database_now(storage)
        results = bulk.prune(
            storage,
            await many.read(storage, now),
            before=now - age,
            rate=many.rate,
            limit=many.limit,
            dry_run=many.dry_run,
        )
        await tell_all(session, results, "pruned", now, dry_run=many.dry_run)


async def _stand(session: Session, target: str, tag: str, reason: str) -> None:
    from engine import by_name
    from engine.workflow.tags import PAUSE

    done = "paused" if tag == PAUSE else "resumed"
    async with session.node() as node:
        whole = await _is_workflow(node.storage, target)
        if whole:
            changed = await by_name.pause(node, target, paused=tag == PAUSE, reason=reason)
        else:
            stored, changed = await tell_on(node, target, tag, reason)
            target = name_of(stored)
    if session.output.as_json:
        session.output.line({"id": target, done: changed})
    elif not whole:
        session.output.say(f"{target} is {done}" if changed else f"{target} had ended before")
    elif changed:
        session.output.say(f"all executions of {target} are {done}")
    else:
        session.output.say(f"{target} was {'paused before' if tag == PAUSE else 'not paused'}")


async def _is_workflow(storage: "Storage", target: str) -> bool:
    """Whether a workflow is meant, by its name: one that runners serve, that has executions, or
    that was paused before."""
    from engine.cluster.served import served

    types = served(await storage.runners())
    found = types.get(target)
    workflow = found is not None and found.kind == "workflow"
    return workflow or target in await storage.workflows() or target in await storage.pauses()
