"""The ``outlast`` console script: every command, and how each of them ends."""

import sys
from typing import Annotated

import typer

from cli import (
    act,
    check,
    cluster,
    completing,
    dead,
    dev,
    entities,
    look,
    queues,
    repairing,
    schedules,
    schema,
    serve,
    telling,
    versions,
)
from cli.exits import Complaint, ExitCode, UsageError, explain
from cli.output import printable

app = typer.Typer(
    name="outlast",
    help="Durable workflows in plain Python that need nothing but PostgreSQL.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"outlast {version('outlast')}")
        raise typer.Exit


@app.callback()
def options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Durable workflows in plain Python that need nothing but PostgreSQL."""


for group in (
    dev,
    serve,
    check,
    look,
    versions,
    entities,
    act,
    repairing,
    telling,
    completing,
    cluster,
    dead,
    queues,
    schedules,
    schema,
):
    group.add_to(app)


def main() -> None:
    """Run the command line and exit with its code."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command line; its exit code. What went wrong is one message on standard error."""
    try:
        _check_text(arguments)
        code: object = app(arguments, standalone_mode=False, prog_name="outlast")
    except (Exception, KeyboardInterrupt) as error:
        if "--debug" in arguments:
            raise
        return _complain(error, arguments)
    return code if isinstance(code, int) else ExitCode.OK


def _check_text(arguments: list[str]) -> None:
    """Bytes that are no text are nowhere in the database, which refuses to look for them."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise UsageError(f"{argument!r} is not UTF-8: nothing has a name like that") from None


def _complain(error: BaseException, arguments: list[str]) -> int:
    message, code = explain(error)
    if "://" in message or "assword=" in message:  # what was typed in a wrong place is quoted
        from engine.settings import without_password

        message = without_password(message)
    if message:
        sys.stderr.write(f"outlast: {printable(message)}\n")
    if isinstance(error, Complaint) and message:  # without one, the help was shown
        commands = {command.name for command in app.registered_commands}
        groups = {group.name for group in app.registered_groups}
        named = [word for word in arguments[:1] if word in commands | groups]
        sys.stderr.write(f"see: {' '.join(['outlast', *named, '--help'])}\n")
    return code
