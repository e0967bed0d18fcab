"""A server of a test's own: it is killed and started again, its disk and its queue of notifications
are small.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import psycopg

from engine.embedded import EmbeddedPostgres
from tests.chaos.disk import Disk, small_disk

SETTINGS = {"max_wal_size": "256MB", "max_notify_queue_pages": "64"}


class Server:
    """``dsn`` leads to its maintenance database; ``durable``: it waits for its disk."""

    def __init__(self, disk: Disk, users: ExitStack, *, durable: bool) -> None:
        self.disk = disk
        self._users = users
        self._durable = durable
        self.start()

    def start(self) -> None:
        """Unless it runs; always at the same port."""
        server = EmbeddedPostgres(self.disk.path, durable=self._durable)
        self._server = self._users.enter_context(server)

    @property
    def dsn(self) -> str:
        return self._server.dsn

    @property
    def postmaster(self) -> int:
        return int((self._server.home / "data" / "postmaster.pid").read_text().splitlines()[0])

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        os.kill(self.postmaster, number)


@contextmanager
def own_server(*, durable: bool = True) -> Iterator[Server]:
    with ExitStack() as users:
        server = Server(users.enter_context(small_disk()), users, durable=durable)
        with psycopg.connect(server.dsn, autocommit=True) as connection:
            known = connection.execute("select name from pg_settings").fetchall()
            for name, value in SETTINGS.items():
                if (name,) in known:
                    connection.execute(f"alter system set {name} = '{value}'".encode())
        server.kill(signal.SIGINT)
        server.start()
        yield server
