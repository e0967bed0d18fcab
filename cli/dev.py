"""Develop: ``dev`` gives a project a database and runs its app, anew after each change."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from cli.child import start_runner
from cli.command import add_command
from cli.exits import CommandError, ExitCode
from cli.serve import PANEL
from cli.session import Session

_PATIENCE = 10.0
_REST = 1.0
"""Before an app that was killed starts again."""
_GRACE_SECONDS = "3"


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    add_command(app, dev, panel=PANEL)


async def dev(
    session: Session,
    app: Annotated[
        str | None,
        typer.Argument(
            metavar="[APP]",
            help="module:attribute, as for 'run'; without it: only the database.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Run an app with a database of its own, and again after each change of its code.

    What 'outlast lint' finds in its workflows is told at each start.

    The database is an embedded PostgreSQL under .outlast/, or the one of --dsn or OUTLAST_DSN; its
    schema is migrated. Ctrl-C ends it all; the data stays.
    """
    from engine.core.errors import StorageUnavailable
    from engine.storage.migrate import migrate

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    async with _database(session) as (dsn, embedded):
        schema = session.settings().schema
        try:
            await migrate(dsn, schema=schema)
        except StorageUnavailable as error:
            if embedded:
                raise
            own = "without --dsn and OUTLAST_DSN, 'outlast dev' brings a PostgreSQL of its own"
            raise CommandError(f"{error}; {own}", ExitCode.UNREACHABLE) from error
        _announce(session, dsn, schema=schema, embedded=embedded, app=app)
        if app is None:
            await stop.wait()
        else:
            await _Reloader(app, dsn=dsn, schema=schema).run(stop)


@asynccontextmanager
async def _database(session: Session) -> AsyncGenerator[tuple[str, bool]]:
    """The DSN, and whether it is that of an embedded server."""
    given = session.settings().dsn
    if given:
        yield given, False
        return
    from engine.embedded import EmbeddedPostgres

    session.output.say("starting PostgreSQL")  # the first time takes seconds
    async with EmbeddedPostgres(Path.cwd()) as server:
        yield server.dsn, True


def _announce(session: Session, dsn: str, *, schema: str, embedded: bool, app: str | None) -> None:
    from engine.settings import without_password

    if session.output.as_json:
        session.output.line(
            {"dsn": without_password(dsn), "schema": schema, "embedded": embedded, "app": app}
        )
        return
    say = session.output.say
    say(f"database  {without_password(dsn)}" + ("  (embedded PostgreSQL)" if embedded else ""))
    say(
        f"app       {app}, restarted when a .py file in {Path.cwd()} changes"
        if app
        else "app       none"
    )
    say("")
    say("In another terminal:")
    if embedded or not os.environ.get("OUTLAST_DSN"):
        say(f"  export OUTLAST_DSN={without_password(dsn)}")
    if app is None:
        say("  outlast run APP")
    say("  outlast start NAME JSON --key KEY")
    say("  outlast ls")
    say("")
    say("Ctrl-C ends it.")


class _Reloader:
    """The app's runner as a process of its own, so that a change means a clean start."""

    def __init__(self, app: str, *, dsn: str, schema: str) -> None:
        self._app = app
        own = {"OUTLAST_DSN": dsn, "OUTLAST_SCHEMA": schema}
        self._environment = {"OUTLAST_GRACE_PERIOD": _GRACE_SECONDS, **os.environ, **own}

    async def run(self, stop: asyncio.Event) -> None:
        """Until ``stop``. An app that cannot be found is exit code 2; one that fails otherwise is
        started again when its code has changed, one that is killed at once."""
        from cli.watching import Watcher

        watcher = Watcher(Path.cwd())
        first = True
        while not stop.is_set():
            process = await start_runner(self._app, "--lint", environment=self._environment)
            try:
                files = await _first(watcher.changed(), process.wait(), stop.wait())
            finally:
                await _end(process)
            if not stop.is_set() and not isinstance(files, list):
                code = process.returncode or 0
                if code < 0:
                    _say(f"the app was killed by {signal.Signals(-code).name}: starting again")
                    await _first(asyncio.sleep(_REST), stop.wait())
                else:
                    self._complain(code, first=first)
                    files = await _first(watcher.changed(), stop.wait())
            first = False
            if isinstance(files, list):
                _say(f"{', '.join(cast('list[str]', files)[:3])} changed: starting again")

    def _complain(self, code: int, *, first: bool) -> None:
        if first and code == ExitCode.USAGE:
            raise CommandError(f"{self._app} cannot be run", ExitCode.USAGE)
        _say(f"the app ended with exit code {code}; it starts again when its code changes")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Let it drain, but not for ever."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_PATIENCE):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()


async def _first(*waits: Coroutine[Any, Any, object]) -> object:
    """What the first of them gives that is done; the others are cancelled."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(wait) for wait in waits]
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        done = next(task for task in tasks if task.done())
        for task in tasks:
            task.cancel()
    return done.result()


def _say(message: str) -> None:
    sys.stderr.write(f"outlast dev: {message}\n")
