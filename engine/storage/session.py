"""One connection to PostgreSQL, set up so that its end is noticed on both sides.

Opened by ``connect``; used by the pool, the lanes, the doorbell and the registry.
"""

import asyncio
import socket
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import asyncpg

_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 20_000}
_ARRAYS = {
    "bool": (1000, 16),
    "bytea": (1001, 17),
    "int2": (1005, 21),
    "int4": (1007, 23),
    "int8": (1016, 20),
    "timestamptz": (1185, 1184),
    "uuid": (2951, 2950),
}
"""The arrays in our queries: the OIDs of the type and of its element, which are built in."""


class Session(asyncpg.Connection):
    """An asyncpg connection whose statements are never cancelled, only ended with it.

    ``codecs`` are the types that SQLAlchemy has set codecs for on it.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.codecs: set[str] = set()
        self.due: float | None = None
        self._watch: asyncio.TimerHandle | None = None

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

    def know_arrays(self) -> None:
        """Spare the server being asked what these types are, which takes it longer than all else
        that a session begins with."""
        # asyncpg has no public way to tell it; what it is not told it asks.
        protocol: Any = getattr(self, "_protocol")  # noqa: B009
        protocol.get_settings().register_data_types(
            [_array(element, *oids) for element, oids in _ARRAYS.items()]
        )

    async def ask(
        self, query: str, *args: object, within: timedelta | None
    ) -> Sequence[asyncpg.Record]:
        """Run one statement. Past ``within`` the session ends, and the statement's outcome is
        unknown; the same when the caller is cancelled."""
        with self.deadline(within):
            return await self.fetch(query, *args)

    def deadline(self, within: timedelta | None) -> "Deadline":
        """End the session when the block, statements of ours, takes longer, or is cancelled while
        one runs.

        Nothing else stops a statement: a cancelled one was seen to commit all the same.
        """
        return Deadline(self, within)

    def end_at(self, due: float) -> None:
        """At that time of the loop, unless ``due`` is another by then."""
        self.due = due
        if self._watch is None or self._watch.when() > due:
            if self._watch is not None:
                self._watch.cancel()
            self._watch = asyncio.get_running_loop().call_at(due, self._look)

    def _look(self) -> None:
        """One timer serves all statements: it is set anew when it comes, if another has begun."""
        self._watch = None
        if self.due is not None:
            loop = asyncio.get_running_loop()
            if loop.time() >= self.due:
                self.terminate()
            else:
                self._watch = loop.call_at(self.due, self._look)


class Deadline:
    """A block of a session's statements. A class of its own, since it is entered for each."""

    __slots__ = ("_before", "_session", "_within")

    def __init__(self, session: Session, within: timedelta | None) -> None:
        self._session = session
        self._within = within

    def __enter__(self) -> None:
        self._before = self._session.due
        if self._within is not None:
            loop = asyncio.get_running_loop()
            self._session.end_at(loop.time() + self._within.total_seconds())

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        session = self._session
        session.due = self._before
        if isinstance(error, asyncio.CancelledError):
            session.terminate()
        elif isinstance(error, AttributeError) and session.is_closed():
            # asyncpg's, which has let go of what it goes on to use.
            raise asyncpg.InterfaceError("the connection was closed meanwhile") from error


def _array(element: str, oid: int, of: int) -> dict[str, object]:
    """An array type as asyncpg reads it from the catalog."""
    nothing = dict.fromkeys(("basetype", "range_subtype", "attrtypoids", "attrnames"))
    return {
        **nothing,
        "oid": oid,
        "ns": "pg_catalog",
        "name": f"_{element}",
        "kind": b"b",
        "elemtype": of,
        "elemtype_name": element,
        "elemdelim": b",",
    }
