"""The console script as a process that is read while it runs."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from tests.cli.terminal import Ended, ended, script


class Watched:
    """A started command. ``said`` is what it wrote to standard error as far as that was read."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self.said = ""

    def says(self, text: str) -> None:
        """Read standard error on until it says this."""
        while text not in self.said:
            line = _stream(self.process.stderr).readline()
            assert line, f"it ended without saying {text!r}:\n{self.said}"
            self.said += line

    def prints(self) -> str:
        """The next line of standard output."""
        return _stream(self.process.stdout).readline()

    def stopped(self, number: int = signal.SIGTERM) -> Ended:
        """Send it a signal and wait for its end."""
        self.process.send_signal(number)
        return ended(self.process)


@contextmanager
def running(
    *arguments: str, dsn: str | None = None, cwd: Path, **variables: str
) -> Iterator[Watched]:
    """A command that is killed in the end if it still runs."""
    process = script(*arguments, dsn=dsn, cwd=cwd, **variables)
    try:
        yield Watched(process)
    finally:
        process.kill()
        process.communicate()


def _stream(stream: IO[str] | None) -> IO[str]:
    assert stream is not None
    return stream
