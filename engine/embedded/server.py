"""Join and leave the embedded server; whoever finds no keeper starts one.

From ``EmbeddedPostgres`` to three files in the server's directory: a shared lock on ``users`` says
that we are here, the lock on ``keeper`` that a keeper lives, and ``port`` that its server is ready.
"""

import asyncio
import fcntl
import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self

from engine.core.errors import StorageUnavailable
from engine.embedded import binaries, keeper
from engine.embedded.account import Account

START_SECONDS = 60.0
ATTENTION_SECONDS = 0.5
LONGEST_SOCKET_DIRECTORY = 80
LARGE_LOG = 1_000_000

log = logging.getLogger(__name__)


class EmbeddedPostgres:
    """A shared local server: within the ``with`` block it runs, and ``dsn`` reaches it.

    A killed user counts as gone. A killed server or keeper is started again on the same port while
    anybody uses it, and what was committed is there. With ``durable=False`` it does not wait for
    the disk, and has data of its own: for tests only. As root, the server runs as the owner of the
    project, else as ``postgres`` or ``nobody``; where that user cannot reach the project, its
    directory is a temporary one whose path depends on the project alone.
    """

    def __init__(self, project: Path | None = None, *, durable: bool = True) -> None:
        self._project = (project or Path.cwd()).resolve()
        self._durable = durable
        self._server: _Server | None = None
        self._leave: Callable[[], None] = lambda: None

    @property
    def home(self) -> Path:
        """The server's directory: its data, its log ``server.log``, its Unix socket."""
        return self._joined.home

    @property
    def dsn(self) -> str:
        """The connection string of the running server."""
        return f"postgresql://postgres@127.0.0.1:{self._joined.port()}/postgres"

    def start(self) -> None:
        """Join the server, and start it if need be; returns when it accepts connections."""
        server = _Server(project=self._project, durable=self._durable)
        self._leave = server.join()
        self._server = server

    def stop(self) -> None:
        """Leave; the server stops when nobody else uses it."""
        self._leave()
        self._server = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)

    @property
    def _joined(self) -> "_Server":
        if self._server is None:
            raise RuntimeError("the embedded server is reached inside its 'with' block only")
        return self._server


class _Server:
    """The server of one project, version of PostgreSQL and durability, seen by one user of it."""

    def __init__(self, *, project: Path, durable: bool) -> None:
        self._account = Account.for_project(project)
        self._durable = durable
        self._programs = binaries.find()
        self._store = self._account.directory(project)
        version = binaries.version(self._programs)
        self.home = self._store / f"postgres-{version}{'' if durable else '-fast'}"
        self._account.create(self.home)

    def join(self) -> Callable[[], None]:
        """Be a user from now on; the function that is returned ends that."""
        users = self._account.open(self.home / "users")
        leaving = threading.Event()

        def leave() -> None:
            if not leaving.is_set():
                leaving.set()
                os.close(users)

        try:
            fcntl.flock(users, fcntl.LOCK_SH)  # waits while a keeper is stopping its server
            self._wait_until_ready()
        except BaseException:
            leave()
            raise
        threading.Thread(
            target=self._attend, args=[leaving], name="outlast-embedded", daemon=True
        ).start()
        return leave

    def port(self) -> int:
        """The port that the server has, or had when it last ran; 0 if it never did."""
        try:
            return int((self.home / "port").read_text())
        except FileNotFoundError:
            return 0

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        launches = int(self._launch_unless_kept())
        while not self._accepts():
            time.sleep(0.05)
            launches += self._launch_unless_kept()
            if launches > 1 or time.monotonic() > deadline:
                raise StorageUnavailable(
                    "the embedded PostgreSQL did not start; set OUTLAST_DSN to use a server of "
                    f"your own, or see {self.home / 'server.log'}:\n{self._last_words()}"
                )

    def _attend(self, leaving: threading.Event) -> None:
        """Replace a keeper that was killed: nobody else would stop the server after us."""
        while not leaving.wait(ATTENTION_SECONDS):
            try:
                self._launch_unless_kept()
            except (OSError, StorageUnavailable) as error:
                log.warning("embedded server not restarted", extra={"reason": str(error)})

    def _launch_unless_kept(self) -> bool:
        """Start a keeper if there is none, and hand it the lock that says that there is one."""
        lock = self._account.open(self.home / "keeper")
        try:
            if not keeper.locked_exclusively(lock):
                return False
            keeper.stop_leftover(self.home / "data")
            programs = binaries.reachable(self._programs, account=self._account, store=self._store)
            self._create_data(programs)
            self._prepare_log()
            order = keeper.Order(
                home=str(self.home),
                postgres=str(programs / "postgres"),
                settings=self._settings(),
                port=self.port(),
                account=[self._account.uid, self._account.gid] if self._account.switched else None,
            )
            subprocess.run(
                [sys.executable, "-I", "-S", keeper.__file__, json.dumps(order)],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[lock],
                start_new_session=True,
                check=True,
            )
            return True
        finally:
            os.close(lock)

    def _create_data(self, programs: Path) -> None:
        """Initialise the data; a half-made directory is never taken for a whole one."""
        data, draft = self.home / "data", self.home / "data.draft"
        if not data.exists():
            shutil.rmtree(draft, ignore_errors=True)
            options = ["--username=postgres", "--auth=trust", "--encoding=UTF8", "--no-locale"]
            options += [] if self._durable else ["--no-sync"]
            self._run(programs / "initdb", f"--pgdata={draft}", *options)
            draft.rename(data)

    def _prepare_log(self) -> None:
        descriptor = self._account.open(self.home / "server.log")
        if os.fstat(descriptor).st_size > LARGE_LOG:
            os.truncate(descriptor, 0)
        os.close(descriptor)

    def _settings(self) -> dict[str, str]:
        fits = len(os.fsencode(self.home)) <= LONGEST_SOCKET_DIRECTORY
        lasting = {} if self._durable else {"fsync": "off", "full_page_writes": "off"}
        return {
            "listen_addresses": "127.0.0.1",
            "max_connections": "300",
            "unix_socket_directories": str(self.home) if fits else "",
            **lasting,
        }

    def _accepts(self) -> bool:
        port = keeper.ready_port(self.home / "data")
        try:
            socket.create_connection(("127.0.0.1", port or 0), timeout=1).close()
        except OSError:
            return False
        return True

    def _last_words(self) -> str:
        with suppress(OSError):
            return "\n".join((self.home / "server.log").read_text().splitlines()[-5:])
        return ""

    def _run(self, *command: str | Path) -> str:
        done = self._account.run(command)
        if done.returncode != 0:
            raise StorageUnavailable(
                f"{command[0]} failed; set OUTLAST_DSN to use a server of your own:\n{done.stderr}"
            )
        return done.stdout
