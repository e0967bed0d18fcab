"""A PostgreSQL server of the project's own, for development, demos and tests.

Its directory holds three files to lock, and the kernel drops a lock however its holder ends.
``users`` is shared by everybody inside a ``with`` block. ``server`` is taken by whoever starts the
server and inherited by every process of it: once it is free, all of them are gone. ``watcher`` is
held by the one process that waits until ``users`` is free and then stops the server.
"""

import asyncio
import fcntl
import re
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from engine.core.errors import StorageUnavailable
from engine.server_home import OWN_SERVER, ServerHome

SETTINGS = "-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=600"
_SERVES = ("ready", "standby")
INITDB = ["-D", "draft", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"]
# INVARIANT last-user: newcomers share `users` before they look for a server, so whoever has it
# exclusively knows that there are none, and keeps them waiting until the server is gone.
WATCHER = """
import fcntl, os, signal, sys, time
home, uid, gid = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
users, server, watcher = [open(f"{home}/{name}", "r+") for name in ("users", "server", "watcher")]
def locked(file):
    try:
        return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) is None
    except BlockingIOError:
        return False
if not locked(watcher) or os.fork():
    os._exit(0)
os.closerange(0, 3)  # its starter waits for that
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(gid), os.setuid(uid)
fcntl.flock(users, fcntl.LOCK_EX)
while not locked(server):
    try:
        os.kill(int(open(f"{home}/data/postmaster.pid").readline()), signal.SIGINT)
    except (OSError, ValueError):
        pass  # about to start, or killed: wait for the other processes
    time.sleep(0.2)
watcher.close()  # before `users`, so that the next user gets a watcher
"""


class EmbeddedPostgres:
    """A shared local server: within the ``with`` block it runs, and ``dsn`` reaches it.

    A killed user counts as gone. The server starts at the port it had before, if that is free, so
    that its DSN stays good; after a crash too, and with all that was committed. With
    ``durable=False`` it does not wait for the disk, and has data of its own: for tests only.
    ``home`` is its directory: see ``server_home``.
    """

    def __init__(self, project_dir: Path | None = None, *, durable: bool = True) -> None:
        self._project = (project_dir or Path.cwd()).resolve()
        self._durable = durable
        self.home = Path("/")
        self._joined = ExitStack()
        self._dsn: str | None = None

    @property
    def dsn(self) -> str:
        """The connection string of the running server."""
        if self._dsn is None:
            raise RuntimeError("the embedded server is reached inside its 'with' block only")
        return self._dsn

    def __enter__(self) -> Self:
        place = self._place = ServerHome(self._project, variant="" if self._durable else "-fast")
        self.home = place.path
        with ExitStack() as joined:
            fcntl.flock(joined.enter_context((self.home / "users").open("r+")), fcntl.LOCK_SH)
            words = [str(self.home), str(place.uid), str(place.gid)]
            watch = [sys.executable, "-ISc", WATCHER, *words]
            subprocess.run(
                watch, cwd="/", input=b"", start_new_session=True, capture_output=True, check=True
            )
            self._dsn = f"postgresql://postgres@127.0.0.1:{self._running()}/postgres"
            self._joined = joined.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._dsn = None
        self._joined.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    def _running(self) -> int:
        """The port of the server, which is started unless it runs."""
        with (self.home / "server").open("r+") as lock:
            for _ in range(1200):  # a minute: another user is starting it, or it is about to end
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._start(lock.fileno())
                with suppress(OSError), socket.create_connection(("127.0.0.1", self._port())):
                    return self._port()
                time.sleep(0.05)
        raise self._failure()

    def _port(self) -> int:
        """The port of the server that was ready last, which may have been killed since, or 0."""
        with suppress(FileNotFoundError):
            status = (self.home / "data/postmaster.pid").read_text().splitlines()
            return int(status[3]) if len(status) > 7 and status[7].startswith(_SERVES) else 0
        return 0

    def _earlier_port(self) -> int:
        """The port of the server before this one, whose DSN somebody may have noted, or 0."""
        with suppress(FileNotFoundError):
            words = (self.home / "data/postmaster.opts").read_text()
            if found := re.search(r'"-p" "(\d+)"', words):
                return int(found[1])
        return 0

    def _start(self, lock: int) -> None:
        """Start the server; having its lock, we know that no process of an earlier one is left."""
        port = self._earlier_port()
        for leftover in ("data/postmaster.pid", "server.log"):
            (self.home / leftover).unlink(missing_ok=True)
        place = self._place
        if not place.run("test", "-x", place.programs / "pg_ctl"):
            place.copy_programs()
        if not (self.home / "data").exists():  # which is never half-made
            shutil.rmtree(self.home / "draft", ignore_errors=True)
            sync = [] if self._durable else ["--no-sync"]
            if not place.run(place.programs / "initdb", *INITDB, *sync, lock=lock):
                raise self._failure()
            (self.home / "draft").rename(self.home / "data")
        settings = SETTINGS + ("" if self._durable else " -c fsync=off -c full_page_writes=off")
        start = ["start", "-w", "-D", "data", "-l", "server.log", "-o"]
        for wanted in (port, 0, 0):  # another program may take a free port before the server does
            with suppress(OSError), socket.create_server(("127.0.0.1", wanted)) as probe:
                port = probe.getsockname()[1]
            if place.run(place.programs / "pg_ctl", *start, f"-p {port} {settings}", lock=lock):
                return
        raise self._failure()

    def _failure(self) -> StorageUnavailable:
        log = self.home / "server.log"
        tail = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
        start = f"the embedded PostgreSQL did not start; {OWN_SERVER}, or see {log}:"
        return StorageUnavailable("\n".join([start, self._place.complaint, *tail]))
