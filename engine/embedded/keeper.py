"""The process that holds an embedded PostgreSQL server and stops it when its last user has left.

Started by ``embedded.server`` as a script of its own, with nothing but the standard library, so
that it outlives whoever started it. Its parent hands it the locked file descriptor ``keeper``; the
lock is given up by the kernel when this process ends, however it ends.

Users hold a shared lock on the file ``users``; the kernel drops it when they die. Getting that lock
exclusively therefore proves that nobody is left, and keeps newcomers waiting until the server has
stopped. A postmaster that dies is started again on the same port.
"""

import ctypes
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TypedDict

FAILED_STARTS = 10
PAUSE = 0.2
SET_PARENT_DEATH_SIGNAL = 1


class Order(TypedDict):
    """What the starter asks for, sent as JSON on the command line."""

    home: str
    postgres: str
    settings: dict[str, str]
    port: int
    account: list[int] | None


def keep(order: Order) -> None:
    """Run the server until no user is left; give up after too many failed starts in a row."""
    home = Path(order["home"])
    users = os.open(home / "users", os.O_RDWR | os.O_NOFOLLOW)
    port = order["port"]
    failures = 0
    while failures < FAILED_STARTS:
        port = _usable_port(port)
        _publish(home / "port", port)
        server = _launch(order, port)
        while server.poll() is None:
            if ready_port(home / "data") == port:
                failures = 0
            # INVARIANT last-user: newcomers take the shared lock before they look for a server, so
            # once this succeeds nobody uses it, and nobody can begin to until this process ends.
            if locked_exclusively(users):
                _stop(server)
                return
            time.sleep(PAUSE)
        failures += 1
        time.sleep(PAUSE)


def locked_exclusively(descriptor: int) -> bool:
    """Take the file's lock if nobody has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def ready_port(data: Path) -> int | None:
    """The port of the server that says it is ready (and may have been killed since)."""
    status = _status(data)
    return int(status[3]) if len(status) > 7 and status[7].startswith("ready") else None


def stop_leftover(data: Path) -> None:
    """End the server of a killed keeper; forget a process id that something else has by now."""
    try:
        pid = int(_status(data)[0])
    except (IndexError, ValueError):
        return
    for request in (signal.SIGINT,) * 100 + (signal.SIGQUIT,) * 50:
        if str(data) not in _command_line(pid):
            break
        os.kill(pid, request)
        time.sleep(0.1)
    (data / "postmaster.pid").unlink(missing_ok=True)


def environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment without the variables by which a user points libpq at another server."""
    return {name: value for name, value in inherited.items() if not name.startswith("PG")}


def _launch(order: Order, port: int) -> subprocess.Popen[bytes]:
    home = Path(order["home"])
    command = [order["postgres"], "-D", str(home / "data"), "-p", str(port)]
    command += [word for item in order["settings"].items() for word in ("-c", "=".join(item))]
    account = order["account"]
    log = os.open(
        home / "server.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600
    )
    try:
        return subprocess.Popen(
            command,
            cwd=home,
            env=environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            user=account[0] if account else None,
            group=account[1] if account else None,
            extra_groups=[] if account else None,
            preexec_fn=_stop_with_parent,  # noqa: PLW1509 this process has one thread
        )
    finally:
        os.close(log)


def _stop_with_parent() -> None:
    """Have the kernel ask for a fast shutdown when the keeper itself is killed (Linux only)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SET_PARENT_DEATH_SIGNAL, signal.SIGINT)


def _stop(server: subprocess.Popen[bytes]) -> None:
    for request, seconds in ((signal.SIGINT, 10), (signal.SIGQUIT, 5), (signal.SIGKILL, 5)):
        server.send_signal(request)
        with suppress(subprocess.TimeoutExpired):
            server.wait(seconds)
            return


def _command_line(pid: int) -> str:
    if sys.platform == "linux":
        with suppress(OSError):
            return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        return ""
    shown = subprocess.run(
        ["ps", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return shown.stdout


def _status(data: Path) -> list[str]:
    """The lines of ``postmaster.pid``: the process id first, its state eighth."""
    try:
        return (data / "postmaster.pid").read_text().splitlines()
    except FileNotFoundError:
        return []


def _publish(path: Path, port: int) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(str(port))
    draft.rename(path)


def _usable_port(preferred: int) -> int:
    """The port of last time if it is still free, so that users' connection strings stay right."""
    for port in (preferred, 0):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


if __name__ == "__main__":
    if os.fork() == 0:  # the starter waits for the first process only, and never has a zombie
        keep(json.loads(sys.argv[1]))
