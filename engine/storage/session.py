"""One connection to PostgreSQL, set up so that its end is noticed on both sides.

Opened by ``connect``; used by the pool, the lanes, the doorbell and the registry.
"""

import asyncio
import socket
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import asyncpg

_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}


class Session(asyncpg.Connection):
    """An asyncpg connection whose statements are never cancelled, only ended with it.

    ``codecs`` are the types that SQLAlchemy has set codecs for on it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.codecs: set[str] = set()

    def keep_alive(self) -> None:
        """Let the kernel notice a peer that is gone; asyncpg leaves the socket as it is."""
        # asyncpg has no public way to its socket.
        transport: Any = getattr(self, "_transport")  # noqa: B009
        sock = transport.get_extra_info("socket")
        if sock is None or sock.family == getattr(socket, "AF_UNIX", None):
            return
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            option = getattr(socket, name, None)
            if option is not None:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)

    async def ask(
        self, query: str, *args: object, within: timedelta | None
    ) -> Sequence[asyncpg.Record]:
        """Run one statement. Past ``within`` the session ends, and the statement's outcome is
        unknown; the same when the caller is cancelled."""
        with self.deadline(within):
            return await self.fetch(query, *args)

    @contextmanager
    def deadline(self, within: timedelta | None) -> Generator[None]:
        """End the session when the block, statements of ours, takes longer, or is cancelled while
        one runs.

        Nothing else stops a statement: a cancelled one was seen to commit all the same.
        """
        loop = asyncio.get_running_loop()
        alarm = None if within is None else loop.call_later(within.total_seconds(), self.terminate)
        try:
            yield
        except asyncio.CancelledError:
            self.terminate()
            raise
        except AttributeError as error:  # asyncpg's, which has let go of what it goes on to use
            if not self.is_closed():
                raise
            raise asyncpg.InterfaceError("the connection was closed meanwhile") from error
        finally:
            if alarm is not None:
                alarm.cancel()
