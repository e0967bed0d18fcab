"""A network that fails: what goes to PostgreSQL and back is delayed, held, cut, or its answer lost.

One listener on loopback; each connection through it is a link. Faults act on the links there are.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from re import Pattern
from typing import TypeVar

CHUNK = 1 << 16
COMMIT = re.compile(rb"Q....COMMIT", re.DOTALL)
STATEMENT = re.compile(rb"B|Q....COMMIT", re.DOTALL)
"""As asyncpg sends them: a plain query, and what runs a prepared statement."""


class Link:
    """One connection. ``held``: nothing passes, and neither side hears of it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._writers = client, server
        self.open = asyncio.Event()
        self.open.set()
        self.delay = 0.0
        """Of all that is read at once, in seconds."""
        self.lose_answer_of: Pattern[bytes] | None = None
        """The next such message is passed on, and its answer cut off."""
        self._losing = False

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self.open.set()

    def hold(self) -> None:
        self.open.clear()

    def release(self) -> None:
        self.open.set()

    async def forth(self, reader: asyncio.StreamReader) -> None:
        """From the client to the server."""
        while data := await reader.read(CHUNK):
            if self.lose_answer_of is not None and self.lose_answer_of.match(data):
                self._losing = True
            await self._pass(data, self._writers[1])

    async def back(self, reader: asyncio.StreamReader) -> None:
        """From the server to the client."""
        while data := await reader.read(CHUNK):
            if self._losing:
                break
            await self._pass(data, self._writers[0])

    async def _pass(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        await self.open.wait()
        if self.delay:
            await asyncio.sleep(self.delay)
        writer.write(data)
        await writer.drain()


class Proxy:
    """In front of a server at a port of this machine; another one for the links to come, if
    ``server_port`` is changed."""

    def __init__(self, server_port: int) -> None:
        self.links: set[Link] = set()
        self.server_port = server_port

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            answers, server = await asyncio.open_connection("127.0.0.1", self.server_port)
        except OSError:
            writer.transport.abort()
            return
        link = Link(writer, server)
        self.links.add(link)
        try:
            ways = {
                asyncio.create_task(link.forth(reader)),
                asyncio.create_task(link.back(answers)),
            }
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            for way in ways:
                way.cancel()
            for ended in await asyncio.gather(*ways, return_exceptions=True):
                if isinstance(ended, Exception) and not isinstance(ended, OSError):
                    raise ended
        finally:
            self.links.discard(link)
            link.cut()


Made = TypeVar("Made", bound=Proxy)


@asynccontextmanager
async def proxy(
    server_port: int, make: Callable[[int], Made] = Proxy
) -> AsyncIterator[tuple[Made, int]]:
    """A proxy and its port."""
    made = make(server_port)
    listener = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    try:
        yield made, listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        for link in list(made.links):
            link.cut()
        with suppress(TimeoutError):
            await asyncio.wait_for(listener.wait_closed(), 5)
