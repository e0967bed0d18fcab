"""Processes that are forked from one that has imported their application already.

That takes a tenth of what it takes to start an interpreter and import it, and each is as easily
killed. They share the hash seed of the first: what must not depend on that is started anew.
"""

import asyncio
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).parents[2]
LONGEST = 1 << 24
LONGEST_ORDER = 1 << 14
"""Each arrives whole and alone, as it comes with files."""


class Forked:
    """What ``asyncio.subprocess.Process`` is to a process that was started."""

    def __init__(
        self,
        pid: int,
        *,
        stdin: asyncio.StreamWriter,
        stdout: asyncio.StreamReader,
        code: asyncio.Future[int],
    ) -> None:
        self.pid = pid
        self.stdin = stdin
        self.stdout = stdout
        self._code = code

    @property
    def returncode(self) -> int | None:
        return self._code.result() if self._code.done() else None

    async def wait(self) -> int:
        return await asyncio.shield(self._code)

    def send_signal(self, number: int) -> None:
        if self.returncode is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Forks:
    """Has an application forked, and is told how each process of it ends."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._asked: deque[asyncio.Future[tuple[int, asyncio.Future[int]]]] = deque()
        self._codes: dict[int, asyncio.Future[int]] = {}

    async def fork(self, *arguments: str, variables: Mapping[str, str], stderr: BinaryIO) -> Forked:
        """One more process of the application, as if it were started with these arguments, and
        these variables beside those that we had when the first was."""
        loop = asyncio.get_running_loop()
        (reads, stdin), (stdout, writes) = os.pipe(), os.pipe()
        lines = asyncio.StreamReader(limit=LONGEST)
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), os.fdopen(stdout, "rb", 0)
        )
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(stdin, "wb", 0)
        )
        asked = loop.create_future()
        self._asked.append(asked)
        order = json.dumps({"arguments": arguments, "variables": dict(variables)}).encode()
        assert len(order) < LONGEST_ORDER
        socket.send_fds(self._control, [order], [reads, writes, stderr.fileno()])
        os.close(reads)
        os.close(writes)
        pid, code = await asked
        writer = asyncio.StreamWriter(transport, protocol, None, loop)
        return Forked(pid, stdin=writer, stdout=lines, code=code)

    async def hear(self, said: asyncio.StreamReader) -> None:
        async for line in said:
            told = json.loads(line)
            if "code" in told:
                self._codes.pop(told["pid"]).set_result(told["code"])
            else:
                code = self._codes[told["pid"]] = asyncio.get_running_loop().create_future()
                asked = self._asked.popleft()
                if not asked.done():  # or whoever asked was cancelled
                    asked.set_result((told["pid"], code))
        for each in (*self._asked, *self._codes.values()):
            if not each.done():
                each.set_exception(RuntimeError("nobody is left to fork: see forks.log"))


@asynccontextmanager
async def forks(app: str, log: Path) -> AsyncIterator[Forks]:
    """The processes of an application. Those that are left at the end are killed, also when this
    process is."""
    ours, theirs = socket.socketpair()
    with log.open("wb") as errors, theirs:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "tests.chaos.forks", app, str(theirs.fileno())),
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=errors,
            pass_fds=[theirs.fileno()],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
    said, control = await asyncio.open_connection(sock=ours)
    made = Forks(ours)
    async with asyncio.TaskGroup() as group:
        hearing = group.create_task(made.hear(said))
        try:
            yield made
        finally:
            hearing.cancel()
            control.close()
            await process.wait()


def serve(app: str, control: socket.socket) -> None:
    """Fork when told to, and tell how it ended; returns in the processes that were forked."""
    running: set[int] = set()
    importlib.import_module(app)
    del sys.modules[app]  # each runs it as its main module
    gc.freeze()

    def say(**told: int) -> None:
        control.sendall(json.dumps(told).encode() + b"\n")

    def ended(*_: object) -> None:
        with suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                running.discard(found[0])
                with suppress(BrokenPipeError):
                    say(pid=found[0], code=os.waitstatus_to_exitcode(found[1]))

    signal.signal(signal.SIGCHLD, ended)
    while True:
        order, files, _, _ = socket.recv_fds(control, LONGEST_ORDER, 3)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # its birth is told of first
        if not order:
            for each in running:
                os.kill(each, signal.SIGKILL)
            sys.exit()
        if pid := os.fork():
            running.add(pid)
            say(pid=pid)
        else:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for number, file in enumerate(files):
                os.dup2(file, number)
        for file in files:
            os.close(file)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
        if not pid:
            become(app, **json.loads(order))
            return


def become(app: str, *, arguments: Sequence[str], variables: Mapping[str, str]) -> None:
    os.environ.update(variables)
    sys.argv = [app, *arguments]


if __name__ == "__main__":
    application = sys.argv[1]
    with socket.socket(fileno=int(sys.argv[2])) as channel:
        serve(application, channel)
    runpy.run_module(application, run_name="__main__", alter_sys=True)
