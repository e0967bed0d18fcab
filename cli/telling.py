"""Tell runs something and look into them: ``signal``, ``update``, ``query``.

Under ``act``, which tells them other things. Works without the workflows' code: a handler is named,
and its arguments are a JSON object.
"""

import asyncio
import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli import arguments
from cli.command import add_command
from cli.durations import parse_duration
from cli.executions import ExecutionId, find, name_of
from cli.exits import CommandError, ExitCode, UsageError
from cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from engine.by_name import Message, Opening
    from engine.core.reply import Exit
    from engine.node import Node
    from engine.storage.protocol import StoredExecution

PANEL = "Act"
HandlerName = Annotated[
    str, typer.Argument(metavar="NAME", help="The handler, as the workflow's class names it.")
]
Arguments = Annotated[
    str,
    typer.Argument(
        metavar="[JSON]",
        help="Its arguments as a JSON object, or - to read standard input.",
    ),
]
Request = Annotated[
    str | None,
    typer.Option(
        "--start",
        help="Start it with this request, in JSON, if it is not there.",
        metavar="JSON",
        show_default=False,
    ),
]
Timeout = Annotated[
    str | None,
    typer.Option("--timeout", "-t", help="How long to wait at most (30s).", metavar="SPAN"),
]


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    for function in (signal, update, query):
        add_command(app, function, panel=PANEL)


async def signal(
    session: Session,
    id: ExecutionId,
    name: HandlerName,
    values: Arguments = "{}",
    start: Request = None,
) -> None:
    """Tell a run something; with --start, one that this starts if it is not there."""
    from engine import by_name
    from engine.workflow.tags import signal_tag

    payload = _payload(values)
    async with session.node() as node:
        if start is None:
            message = message_to(await find(node.storage, id), signal_tag(name), payload)
            await by_name.signal(node, message)
        else:
            opening = await _opening(node, id, start)
            message = _first_message(opening, signal_tag(name), payload)
            await opening.signal(node, message)
    if session.output.as_json:
        session.output.line({"id": str(message), "signal": name, "stored": True})
    else:
        session.output.say(f"told {message}: {name}")


async def update(
    session: Session,
    id: ExecutionId,
    name: HandlerName,
    values: Arguments = "{}",
    start: Request = None,
    timeout: Timeout = None,
) -> None:
    """Tell a run something and print its answer; with --start, one that this starts if it is not
    there. Exit code 1 when it was refused or failed."""
    from engine import by_name
    from engine.workflow.tags import update_tag

    payload = _payload(values)
    async with session.node() as node:
        if start is None:
            message = message_to(await find(node.storage, id), update_tag(name), payload)
            answer = by_name.ask(node, message)
        else:
            opening = await _opening(node, id, start)
            message = _first_message(opening, update_tag(name), payload)
            answer = opening.ask(node, message)
        exit = await _in_time(answer, str(message), name, timeout)
    session.output.value(_answer(str(message), name, exit))


async def query(
    session: Session,
    id: ExecutionId,
    name: HandlerName,
    values: Arguments = "{}",
    timeout: Timeout = None,
) -> None:
    """Print what a query of a run sees now, also when it sleeps or has ended."""
    from engine import by_name
    from engine.workflow.tags import query_tag

    payload = _payload(values)
    async with session.node() as node:
        stored = await find(node.storage, id)
        message = message_to(stored, query_tag(name), payload)
        exit = await _in_time(by_name.query(node, message), name_of(stored), name, timeout)
    session.output.value(_answer(name_of(stored), name, exit))


def message_to(
    stored: "StoredExecution", tag: str, payload: bytes, key: str | None = None
) -> "Message":
    """What an execution is to be told."""
    from engine.by_name import Message

    return Message(
        workflow=stored.workflow,
        group=stored.shard.group,
        id=stored.execution_id,
        tag=tag,
        payload=payload,
        key=key,
    )


async def tell(session: Session, id: str, tag: str, reason: str) -> "tuple[StoredExecution, bool]":
    """The execution that was given an order, and whether that came in time."""
    async with session.node() as node:
        return await tell_on(node, id, tag, reason)


async def tell_on(node: "Node", id: str, tag: str, reason: str) -> "tuple[StoredExecution, bool]":
    """As ``tell``, from a place in the cluster."""
    from engine import by_name
    from engine.workflow.tags import encode_order

    stored = await find(node.storage, id)
    payload = encode_order(reason, node.settings.author)
    return stored, await by_name.tell(node, message_to(stored, tag, payload))


async def _opening(node: "Node", id: str, request: str) -> "Opening":
    """The start of an execution that is named in full, as it may not be there."""
    from engine.by_name import Opening, Start, locate
    from engine.core.names import entity_id

    workflow, slash, key = id.partition("/")
    if not (slash and workflow and key):
        raise UsageError(f"with --start the execution is named as Workflow/key, not {id!r}")
    payload = arguments.json_payload(request, what="the request")
    located = await locate(node.storage, workflow)
    execution = entity_id(key, what="the key")
    return Opening(
        start=Start(workflow=workflow, group=located.group, id=execution, payload=payload)
    )


def _first_message(opening: "Opening", tag: str, payload: bytes) -> "Message":
    from engine.by_name import Message

    start = opening.start
    return Message(
        workflow=start.workflow, group=start.group, id=start.id, tag=tag, payload=payload
    )


async def _in_time(
    answer: "Coroutine[Any, Any, Exit]", execution: str, name: str, timeout: str | None
) -> "Exit":
    try:
        async with asyncio.timeout(
            None if timeout is None else parse_duration(timeout).total_seconds()
        ):
            return await answer
    except TimeoutError:
        raise CommandError(
            f"{execution} has not answered {name} within {timeout}:"
            f" 'outlast why {execution}' says where it stands",
            ExitCode.TIMED_OUT,
        ) from None


def _answer(execution: str, name: str, exit: "Exit") -> object:
    from engine.core.reply import Defect, Failure, Success

    match exit:
        case Success(value):
            return json.loads(value)
        case Failure(error) | Defect(error):
            why = str(error)
        case ended:
            why = ended.reason
    raise CommandError(f"{name} of {execution} was not answered: {why}")


def _payload(text: str) -> bytes:
    payload = arguments.json_payload(text, what="the arguments")
    if not isinstance(json.loads(payload), dict):
        raise UsageError(
            'the arguments of a handler are named, in a JSON object: \'{"text": "hi"}\''
        )
    return payload
