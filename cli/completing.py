"""End steps that have left their end to somebody outside: ``complete``, ``fail``.

Under ``app``. Works without the workflows' code: a token says all.
"""

from typing import Annotated

import typer

from cli import arguments
from cli.command import add_command
from cli.exits import CommandError
from cli.session import Session

PANEL = "Act"
Token = Annotated[
    str, typer.Argument(metavar="TOKEN", help="What the step handed out as self.token.")
]
Value = Annotated[
    str, typer.Argument(metavar="JSON", help="A JSON value, or - to read it from standard input.")
]
ErrorText = Annotated[str, typer.Argument(metavar="TEXT", help="Why there will be no result.")]


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    for function in (complete, fail):
        add_command(app, function, panel=PANEL)


async def complete(session: Session, token: Token, value: Value) -> None:
    """Give a step that waits for it its result. Exit code 1 when it came too late."""
    payload = arguments.json_payload(value, what="the result")
    await _end(session, token, payload, failed=False)


async def fail(session: Session, token: Token, error: ErrorText) -> None:
    """Let a step that waits for its result fail; it may be tried again."""
    from engine.core.errors import ErrorDetails
    from engine.core.reply import encode_error

    await _end(session, token, encode_error(ErrorDetails("Failed", error)), failed=True)


async def _end(session: Session, text: str, payload: bytes, *, failed: bool) -> None:
    from engine import by_name
    from engine.workflow.token import StepToken

    token = StepToken.parse(text)
    async with session.node() as node:
        first = await by_name.complete(node, token, payload, failed=failed)
    name, done = f"{token.workflow}/{token.id}", "failed" if failed else "completed"
    if not first:
        raise CommandError(
            f"that attempt of step {token.name} of {name} was completed before, or {name} has"
            f" ended: 'outlast show {name}' tells which"
        )
    if session.output.as_json:
        session.output.line({"id": name, "step": token.name, done: True})
    else:
        session.output.say(f"{done} step {token.name} of {name}")
