"""Run the command line: in this process, where that is enough, or as the installed script."""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cli.app import run
from engine import Client, Runner, Settings
from tests.cli import orders

SCRIPT = Path(sys.executable).with_name("outlast")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended. ``err`` holds no traceback unless one was asked for."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[Any]:
        """The JSON objects of standard output, one per line."""
        return [json.loads(line) for line in self.out.splitlines()]


class _Keyboard(io.StringIO):
    """Standard input at which somebody sits."""

    def isatty(self) -> bool:
        return True


def outlast(
    *arguments: str, dsn: str | None = None, stdin: str = "", typed: str | None = None
) -> Ended:
    """Run a command in this process, piped; ``typed``: with a keyboard for its standard input. Not
    from a running event loop: use a thread there."""
    out, err = io.StringIO(), io.StringIO()
    words = [*arguments, *(["--dsn", dsn] if dsn else [])]
    with (
        redirect_stdout(out),
        redirect_stderr(err),
        patch("sys.stdin", io.StringIO(stdin) if typed is None else _Keyboard(typed)),
        patch.dict(os.environ),
    ):
        code = run(words)
    assert "Traceback" not in err.getvalue() or "--debug" in words
    return Ended(code, out.getvalue(), err.getvalue())


async def do(*arguments: str, dsn: str, stdin: str = "", typed: str | None = None) -> Ended:
    """The same from an event loop: in a thread, whose loop is its own."""
    return await asyncio.to_thread(outlast, *arguments, dsn=dsn, stdin=stdin, typed=typed)


def script(
    *arguments: str, dsn: str | None = None, cwd: Path | None = None, **variables: str
) -> "subprocess.Popen[str]":
    """Start the installed console script, piped."""
    environment: Mapping[str, str] = {**os.environ, **variables}
    if dsn is not None:
        environment = {**environment, "OUTLAST_DSN": dsn}
    return subprocess.Popen(
        [SCRIPT, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: "subprocess.Popen[str]", *, within: float = 30) -> Ended:
    """Wait for a script and read what it said."""
    out, err = process.communicate(timeout=within)
    return Ended(process.returncode, out, err)


def settings(dsn: str) -> Settings:
    return Settings(dsn=dsn, suspend_after=timedelta(milliseconds=20), shards_per_group=4)


@asynccontextmanager
async def served(dsn: str) -> AsyncGenerator[Client]:
    """A runner of the orders' app in this process, and its client."""
    async with Runner(settings(dsn)).register(*orders.app) as runner:
        yield runner.client
