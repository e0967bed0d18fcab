"""Act on executions: ``start``, ``poll``, ``join``, ``resolve``, ``reject``, ``fork``.

What ends them, pauses them or lets them go on, one or many, is in ``cli.repairing``.
"""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated

import typer

from cli import arguments
from cli.command import add_command
from cli.durations import parse_duration, parse_time, readable
from cli.executions import ExecutionId, find, name_of
from cli.exits import CommandError, ExitCode, UsageError
from cli.output import printable, to_json
from cli.session import Session, database_now
from cli.telling import message_to

if TYPE_CHECKING:
    from engine.by_name import Message
    from engine.core.outcome import ExecutionInfo
    from engine.core.reply import Exit
    from engine.node import Node
    from engine.storage.protocol import StoredExecution

PANEL = "Act"
_CHECK = 5.0
"""So many seconds for a runner to say whether something fits."""
Payload = Annotated[
    str, typer.Argument(metavar="JSON", help="A JSON value, or - to read it from standard input.")
]
DeferredName = Annotated[
    str, typer.Argument(metavar="NAME", help="The deferred, as the workflow's class names it.")
]


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    for function in (start, poll, join, resolve, reject, fork):
        add_command(app, function, panel=PANEL)


async def start(
    session: Session,
    workflow: Annotated[str, typer.Argument(metavar="NAME", help="The workflow's name.")],
    request: Payload,
    key: Annotated[
        str,
        typer.Option(
            "--key", "-k", help="The execution's id: one key, one execution.", metavar="K"
        ),
    ],
    at: Annotated[
        str | None, typer.Option(help="Not before this time (ISO 8601).", metavar="TIME")
    ] = None,
    delay: Annotated[
        str | None, typer.Option(help="Not before so long from now (30s, 5m, 2h).", metavar="SPAN")
    ] = None,
    attribute: Annotated[
        list[str] | None,
        typer.Option("--attribute", "-a", help="To find it by; may be repeated.", metavar="K=V"),
    ] = None,
    restart_failed: Annotated[
        bool, typer.Option("--restart-failed", help="Let one that has ended badly begin again.")
    ] = False,
) -> None:
    """Start an execution; starting it again with the same request changes nothing."""
    from engine import by_name
    from engine.core.names import entity_id
    from engine.storage.protocol import SaveOutcome

    payload = arguments.json_payload(request, what="the request")
    attributes = arguments.attributes(attribute or [])
    id = entity_id(key, what="the key")
    wait = None if delay is None else parse_duration(delay)
    when = None if at is None else parse_time(at)
    if wait is not None and when is not None:
        raise UsageError("give --at or --delay, not both")
    async with session.node() as node:
        located = await by_name.locate(node.storage, workflow)
        wanted = by_name.Start(
            workflow=workflow,
            group=located.group,
            id=id,
            payload=payload,
            deliver_at=when if wait is None else node.clock.now() + wait,
            attributes=json.dumps(attributes).encode() if attributes else None,
        )
        if located.served:
            await _checked(node, wanted.question())
        conflict: by_name.OnConflict = "restart-failed" if restart_failed else "join"
        saved = await by_name.start(node, wanted, on_conflict=conflict)
    name, created = f"{workflow}/{id}", saved.outcome is SaveOutcome.CREATED
    if session.output.as_json:
        session.output.line(
            {
                "id": name,
                "workflow": workflow,
                "key": id,
                "request_id": str(saved.request_id),
                "created": created,
            }
        )
    else:
        session.output.say(
            f"started {name}" if created else f"{name} was started before, with the same request"
        )
    if created and not located.served:
        session.output.note(f"no live runner serves {workflow}; it begins as soon as one does")


async def poll(session: Session, id: ExecutionId) -> None:
    """Say what has become of an execution, without waiting."""
    from cli import forms
    from engine import admin

    async with session.storage() as storage:
        silent_before = session.silent_before(storage)
        info = await admin.describe(storage, await find(storage, id), silent_before=silent_before)
        now = database_now(storage)
    name = f"{info.workflow}/{info.id}"
    if session.output.as_json:
        form = {"id": name, "status": str(info.status), "why": info.why}
        session.output.line(form | forms.outcome(info))
    elif info.finished_at is None:
        session.output.say(f"{name}, {info.status}: {readable(info.why, now)}")
    else:
        session.output.say(f"{name}, {info.status}{_value(info)}")


async def join(
    session: Session,
    id: ExecutionId,
    timeout: Annotated[
        str | None,
        typer.Option("--timeout", "-t", help="How long to wait at most (30s).", metavar="SPAN"),
    ] = None,
) -> None:
    """Wait for an execution to end and print its result.

    Exit code 1 when it failed, 5 when it was interrupted or terminated, 4 when time ran out.
    """
    limit = None if timeout is None else parse_duration(timeout).total_seconds()
    async with session.node(notifications=False) as node:
        stored = await find(node.storage, id)
        try:
            async with asyncio.timeout(limit):
                exit = await node.replies.wait(stored.request_id)
        except TimeoutError:
            raise CommandError(
                f"{name_of(stored)} has not ended within {timeout}:"
                f" 'outlast why {name_of(stored)}' says what it waits for",
                ExitCode.TIMED_OUT,
            ) from None
    session.output.value(_result(stored, exit))


async def resolve(session: Session, id: ExecutionId, name: DeferredName, value: Payload) -> None:
    """Give an execution the value that it waits for, or will wait for."""
    payload = arguments.json_payload(value, what="the value")
    await _settle(session, id, name, payload, rejected=False)


async def reject(
    session: Session,
    id: ExecutionId,
    name: DeferredName,
    error: Annotated[str, typer.Argument(metavar="TEXT", help="Why there will be no value.")],
) -> None:
    """Let an execution's wait for a value fail."""
    await _settle(session, id, name, json.dumps(error).encode(), rejected=True)


async def fork(
    session: Session,
    id: ExecutionId,
    step: Annotated[
        str,
        typer.Argument(
            metavar="STEP", help="The first step to run anew (charge, charge#2), or a position."
        ),
    ],
    key: Annotated[str, typer.Option("--key", "-k", help="The new execution's id.", metavar="K")],
    request: Annotated[
        str | None, typer.Option(help="Another request than the first had.", metavar="JSON")
    ] = None,
) -> None:
    """Start another execution that has done already what this one had before a step."""
    from engine import repair

    payload = None if request is None else arguments.json_payload(request, what="the request")
    async with session.node() as node:
        stored = await find(node.storage, id)
        at = int(step) if step.isdigit() else step
        await repair.fork(node, stored, at, key=key, request=payload)
    name, forked = name_of(stored), f"{stored.workflow}/{key}"
    if session.output.as_json:
        session.output.line({"id": forked, "forked_from": name, "step": at})
    else:
        session.output.say(f"{forked} goes on from {step} of {name}")


async def _settle(
    session: Session, id: str, deferred: str, payload: bytes, *, rejected: bool
) -> None:
    """Resolve or reject, whichever is first; a later one is exit code 1."""
    from engine import by_name
    from engine.core.names import definition_name
    from engine.workflow.tags import deferred_key, reject_tag, resolve_tag

    definition_name(deferred, what="a deferred")
    async with session.node() as node:
        stored = await find(node.storage, id)
        tag = reject_tag(deferred) if rejected else resolve_tag(deferred)
        located = await by_name.locate(node.storage, stored.workflow)
        checked = located.served and await _checked(node, message_to(stored, tag, payload))
        key = deferred_key(stored.workflow, stored.execution_id, deferred)
        first = await by_name.tell(node, message_to(stored, tag, payload, key))
    name, done = name_of(stored), "rejected" if rejected else "resolved"
    if not first:
        raise CommandError(
            f"{deferred!r} of {name} was resolved or rejected before, or it has ended:"
            f" 'outlast show {name}' tells which"
        )
    if session.output.as_json:
        session.output.line({"id": name, "deferred": deferred, done: True})
    else:
        session.output.say(f"{done} {deferred} of {name}")
    if not checked:
        _warn_unchecked(session, stored, deferred)


async def _checked(node: "Node", message: "Message") -> bool:
    """Ask who runs it whether it fits: only the code knows, and what is stored is final. False when
    nobody can say."""
    from engine import by_name
    from engine.core.errors import EngineError
    from engine.core.reply import Success

    try:
        async with asyncio.timeout(_CHECK):
            exit = await by_name.query(node, message)
    except (EngineError, TimeoutError):
        return False
    if not isinstance(exit, Success):
        return False
    if (misfit := json.loads(exit.value)) is not None:
        raise CommandError(f"nothing is stored: {misfit}")
    return True


def _warn_unchecked(session: Session, stored: "StoredExecution", deferred: str) -> None:
    """Nobody said that it fits; the execution's row names the deferreds that it waits for."""
    session.output.note("no runner could say whether it fits; it is stored as it is")
    awaited = [
        item.split()[-1] for item in (stored.waiting or "").split(", ") if "deferred " in item
    ]
    if awaited and deferred not in awaited:
        session.output.note(f"{name_of(stored)} waits for {', '.join(awaited)}, not for {deferred}")


def _result(stored: "StoredExecution", exit: "Exit") -> object:
    """The decoded result, or the error that stands for the exit."""
    from engine.admin import readable
    from engine.core import reply

    name = name_of(stored)
    match exit:
        case reply.Success(value):
            return readable(value)
        case reply.Failure(error) | reply.Defect(error):
            cause = f" (caused by {error.cause})" if error.cause else ""
            raise CommandError(f"{name} failed: {error}{cause}; 'outlast show {name}' tells more")
        case reply.Interrupted(reason):
            raise CommandError(_ended(name, "interrupted", reason), ExitCode.INTERRUPTED)
        case reply.Terminated(reason):
            raise CommandError(_ended(name, "terminated", reason), ExitCode.INTERRUPTED)


def _value(info: "ExecutionInfo") -> str:
    """The result, or what is there instead."""
    from engine.core.status import Status

    if info.status is Status.SUCCEEDED:
        return f": {to_json(info.result)}"
    return printable(f": {info.why if info.error is None else info.error}")


def _ended(name: str, how: str, reason: str) -> str:
    return f"{name} was {how}" + (f": {reason}" if reason else "")
