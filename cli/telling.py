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

    from engine.by_name import Message
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
Timeout = Annotated[
    str | None,
    typer.Option("--timeout", "-t", help="How long to wait at most (30s).", metavar="SPAN"),
]


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    for function in (signal, update, query):
        add_command(app, function, panel=PANEL)


async def signal(
    session: Session, id: ExecutionId, name: HandlerName, values: Arguments = "{}"
) -> None:
    """Tell a run something."""
    from engine import by_name
    from engine.workflow.tags import signal_tag

    payload = _payload(values)
    async with session.node() as node:
        stored = await find(node.storage, id)
        await by_name.signal(node, message_to(stored, signal_tag(name), payload))
    if session.output.as_json:
        session.output.line({"id": name_of(stored), "signal": name, "stored": True})
    else:
        session.output.say(f"told {name_of(stored)}: {name}")


async def update(
    session: Session,
    id: ExecutionId,
    name: HandlerName,
    values: Arguments = "{}",
    timeout: Timeout = None,
) -> None:
    """Tell a run something and print its answer. Exit code 1 when it was refused or failed."""
    from engine import by_name
    from engine.workflow.tags import update_tag

    payload = _payload(values)
    async with session.node() as node:
        stored = await find(node.storage, id)
        message = message_to(stored, update_tag(name), payload)
        exit = await _in_time(by_name.ask(node, message), stored, name, timeout)
    session.output.value(_answer(stored, name, exit))


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
        exit = await _in_time(by_name.query(node, message), stored, name, timeout)
    session.output.value(_answer(stored, name, exit))


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


async def _in_time(
    answer: "Coroutine[Any, Any, Exit]", stored: "StoredExecution", name: str, timeout: str | None
) -> "Exit":
    try:
        async with asyncio.timeout(
            None if timeout is None else parse_duration(timeout).total_seconds()
        ):
            return await answer
    except TimeoutError:
        raise CommandError(
            f"{name_of(stored)} has not answered {name} within {timeout}:"
            f" 'outlast why {name_of(stored)}' says where it stands",
            ExitCode.TIMED_OUT,
        ) from None


def _answer(stored: "StoredExecution", name: str, exit: "Exit") -> object:
    from engine.core.reply import Defect, Failure, Success

    match exit:
        case Success(value):
            return json.loads(value)
        case Failure(error) | Defect(error):
            why = str(error)
        case ended:
            why = ended.reason
    raise CommandError(f"{name} of {name_of(stored)} was not answered: {why}")


def _payload(text: str) -> bytes:
    payload = arguments.json_payload(text, what="the arguments")
    if not isinstance(json.loads(payload), dict):
        raise UsageError(
            'the arguments of a handler are named, in a JSON object: \'{"text": "hi"}\''
        )
    return payload
