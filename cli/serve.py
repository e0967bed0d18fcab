"""Run an app: ``run`` serves until it is told to stop, then drains."""

import asyncio
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import add_command
from cli.exits import CommandError, ExitCode
from cli.loading import load_runner
from cli.logs import level_of, log_to_stderr
from cli.session import Session

if TYPE_CHECKING:
    from engine.runner import Runner

PANEL = "Develop and run"
App = Annotated[
    str,
    typer.Argument(
        metavar="APP",
        help="module:attribute, where the attribute is a Runner, a list of prototypes,"
        " or a function that returns either.",
    ),
]
LogLevel = Annotated[
    str, typer.Option("--log-level", help="debug, info, warning or error.", metavar="LEVEL")
]


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    add_command(app, run, panel=PANEL)


def run(
    session: Session,
    app: App,
    groups: Annotated[
        str | None,
        typer.Option(
            "--groups",
            help="The shard groups to serve, separated by commas, instead of OUTLAST_GROUPS;"
            " a Runner made with groups of its own keeps those.",
            metavar="NAMES",
        ),
    ] = None,
    log_level: LogLevel = "info",
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            help="How many runners, each in a process of its own; one that is lost is replaced."
            " OUTLAST_HEALTH_PORT is that of the first, the others have the ports after it.",
            min=1,
            max=64,
            metavar="N",
        ),
    ] = 1,
    lint: Annotated[bool, typer.Option("--lint", hidden=True)] = False,
    while_stdin_is_open: Annotated[
        bool, typer.Option("--while-stdin-is-open", hidden=True)
    ] = False,
) -> None:
    """Run an app: serve its workflows and entities until SIGTERM or Ctrl-C, then drain."""
    from engine.core.errors import NotGranted

    level = level_of(log_level)
    session.export()
    if groups is not None:
        os.environ["OUTLAST_GROUPS"] = groups
    session.settings().database()  # said at once, not after an import that may take long
    if processes > 1:
        from cli.processes import Processes

        asyncio.run(Processes([app, "--log-level", log_level], number=processes).run())
        return
    sys.path.insert(0, str(Path.cwd()))
    runner = load_runner(app)
    log_to_stderr(level)
    if lint:
        _lint(runner)
    if while_stdin_is_open:
        threading.Thread(target=_stop_after_stdin, name="lifeline", daemon=True).start()
    calm_collector()
    try:
        with asyncio.Runner(loop_factory=fastest_loop()) as loop:
            loop.run(runner.run())
    except NotGranted as error:  # it names what the first statement needs, which may be less
        raise NotGranted(f"{error}; a runner needs the grants of a worker") from error
    except asyncio.CancelledError:
        raise CommandError(
            "cut short by a second signal; what was running begins again elsewhere", ExitCode.CTRL_C
        ) from None


def calm_collector() -> None:
    """Let Python look for cycles of references less often, and not among what was imported.

    What was imported stays: a full collection that looks at it too stops everything for 60 ms of
    computing, which took up to 390 ms on a busy machine. And executions take their cycles apart
    when they leave memory: under load a third of a runner's time went into looking for more.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop's where it is installed, else asyncio's own."""
    try:
        factory: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module(
            "uvloop"
        ).new_event_loop
    except ImportError:
        return None
    return factory


def _lint(runner: "Runner") -> None:
    """What a replay cannot repeat is told while it is being written."""
    from engine.testing.linter import lint_workflows

    for finding in sorted(set(lint_workflows(runner.registered))):
        sys.stderr.write(f"outlast lint: {finding}\n")


def _stop_after_stdin() -> None:
    """Whoever started us holds the other end: when it is gone, so should we be."""
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
