"""Check code without a database: ``lint`` its workflows, ``replay`` exported histories on it."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import add_command
from cli.exits import CommandError, UsageError
from cli.loading import load_prototypes
from cli.serve import App
from cli.session import Session

if TYPE_CHECKING:
    from engine.history import History
    from engine.runner import Registered
    from engine.testing import Finding

PANEL = "Develop and run"


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    for function in (lint, replay):
        add_command(app, function, panel=PANEL)


def lint(
    session: Session,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="APP|FILES...",
            help="An app as module:attribute, or Python files and folders of them.",
            show_default=False,
        ),
    ],
) -> None:
    """Point at what a replay cannot repeat, by line: clock, random, I/O, sets and more in bodies.

    Nothing is run, but for the import of an app. A line with the comment
    '# outlast: ignore[OUT101]' is left out. The exit code is 1 when something was found.
    """
    from engine.testing.linter import lint_files, lint_workflows

    files = [each for each in what if not _is_app(each)]
    found: list[Finding] = lint_files(files) if files else []
    for app in what:
        if _is_app(app):
            sys.path.insert(0, str(Path.cwd()))
            found.extend(lint_workflows(load_prototypes(app)))
    found = sorted(set(found))
    for each in found:
        if session.output.as_json:
            session.output.line(_finding(each))
        else:
            session.output.say(str(each))
    if found:
        one = len(found) == 1
        raise CommandError(f"{len(found)} place{'' if one else 's'} to correct")
    session.output.say("nothing found")


async def replay(
    session: Session,
    app: App,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILES...",
            help="What 'outlast history ID --export' wrote.",
            show_default=False,
        ),
    ],
) -> None:
    """Replay exported histories against the code of an app, to learn whether it still fits.

    For CI: no database is needed, no step runs. The exit code is 1 when a history does not fit.
    """
    sys.path.insert(0, str(Path.cwd()))
    prototypes = load_prototypes(app)
    histories = [(file, each) for file in files for each in _histories(file)]
    failed = 0
    for file, history in histories:
        error = await _mismatch(history, prototypes)
        failed += error is not None
        name = f"{history.workflow}/{history.id}"
        if session.output.as_json:
            fits = error is None
            session.output.line({"file": str(file), "id": name, "fits": fits, "error": error})
        elif error is None:
            session.output.say(f"{file}: {name} fits, {len(history)} events")
        else:
            session.output.say(f"{file}: {name} does not fit: {error}")
    if failed:
        raise CommandError(f"{failed} of {len(histories)} histories do not fit this code")


async def _mismatch(history: "History", prototypes: "Sequence[Registered]") -> str | None:
    """What is wrong, if anything."""
    from engine.core.errors import ConfigurationError, InvalidPayload, NonDeterminism
    from engine.testing.replay import replay
    from engine.workflow.definition import Workflow

    workflows = [each for each in prototypes if isinstance(each, Workflow)]
    versions = [each for each in workflows if each.name == history.workflow]
    if not versions:
        served = ", ".join(sorted({each.name for each in workflows}))
        return f"the app has no workflow {history.workflow}; it has {served or 'none'}"
    try:
        await replay(history, *versions)
    except (NonDeterminism, InvalidPayload, ConfigurationError) as error:
        return str(error)
    return None


def _histories(file: Path) -> "list[History]":
    from engine.core.errors import InvalidPayload
    from engine.testing.replay import load_histories

    try:
        found = load_histories(file)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    except InvalidPayload as error:
        raise UsageError(f"{file}: {error}") from error
    if not found:
        raise UsageError(f"{file} is empty; write it with 'outlast history ID --export'")
    return found


def _is_app(word: str) -> bool:
    module, colon, attribute = word.partition(":")
    return bool(colon and module and attribute) and not Path(word).exists()


def _finding(found: "Finding") -> dict[str, object]:
    return {
        "file": found.file,
        "line": found.line,
        "column": found.column,
        "code": found.code,
        "what": found.what,
        "message": found.message,
        "fix": found.fix,
        "where": found.where,
    }
