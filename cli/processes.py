"""Several runners of one app, each in a process of its own: ``run --processes``.

Each is ``outlast run`` with the same words. This process has no part in what they do; it hands
signals on and replaces a runner that is lost.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress

from cli.child import start_runner
from cli.exits import CommandError, ExitCode

_PAUSE = 1.0


class Processes:
    """So many of them; ``words`` are those after ``outlast run``."""

    def __init__(self, words: Sequence[str], *, number: int) -> None:
        self._words = words
        self._number = number
        self._running: set[asyncio.subprocess.Process] = set()
        self._told = asyncio.Event()

    async def run(self) -> None:
        """Until SIGTERM or SIGINT, which each of them gets as SIGTERM and drains; a second one ends
        them at once. When one ends with an error, as it does when the app cannot be run, all are
        told to stop, and that is a ``CommandError`` with its exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._tell)
        async with asyncio.TaskGroup() as group:
            keeping = [group.create_task(self._keep(nth)) for nth in range(self._number)]
        if code := max(task.result() for task in keeping):
            known = ExitCode(code) if code in set(ExitCode) else ExitCode.FAILED
            raise CommandError("a runner process ended with an error", known)

    async def _keep(self, nth: int) -> int:
        """Have one that runs, until they are told to stop; its exit code, 0 or that of an error."""
        while True:
            try:
                code = await self._run_one(nth)
            except OSError as error:  # no memory or process is to be had now; the others run on
                _say(f"a runner process cannot be started: {error}; it is tried again")
                await self._pause()
                if self._told.is_set():
                    return 0
                continue
            if code > 0:
                self._tell()
            if self._told.is_set():
                return max(code, 0)  # a signal that came before it could drain left nothing behind
            _say(f"a runner process ended with exit code {code}; another takes its place")
            await self._pause()

    async def _run_one(self, nth: int) -> int:
        process = await start_runner(*self._words, environment=_environment(nth))
        self._running.add(process)
        try:
            if self._told.is_set():  # while it was started
                _end(process)
            return await process.wait()
        finally:
            self._running.discard(process)

    def _tell(self) -> None:
        self._told.set()
        for process in self._running:
            _end(process)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(_PAUSE):
                await self._told.wait()
        except TimeoutError:
            return


def _end(process: asyncio.subprocess.Process) -> None:
    # Its own ``terminate`` looks whether it has ended, and takes the exit code from who waits for
    # that.
    if process.returncode is None:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)


def _environment(nth: int) -> Mapping[str, str]:
    """Each needs a port of its own to say how it fares: the first has the one that was named."""
    port = os.environ.get("OUTLAST_HEALTH_PORT", "")
    own = {"OUTLAST_HEALTH_PORT": str(int(port) + nth)} if port.isdigit() and int(port) else {}
    return {**os.environ, **own}


def _say(message: str) -> None:
    sys.stderr.write(f"outlast run: {message}\n")
