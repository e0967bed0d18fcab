"""A transaction pooler of a page: enough of one to see that the engine notices it, or can use it.

Clients log in without a password; each transaction gets whichever server connection is free, the
last used first. Statements are passed through as they are.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

_SSL_REQUEST = 80877103
_READY = b"Z"


class Server:
    """One connection to the real server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.greeting = b""

    async def start(self, startup: bytes) -> None:
        self.writer.write(startup)
        while True:
            kind, body = await message(self.reader)
            if kind == _READY:
                return
            if kind == b"S":
                self.greeting += frame(kind, body)


class TransactionPooler:
    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._free: deque[Server] = deque()
        self._clients = 0
        self._writers: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        startup = await first_packet(reader)
        while int.from_bytes(startup[4:8], "big") == _SSL_REQUEST:
            writer.write(b"N")
            startup = await first_packet(reader)
        server = await self._borrow(startup)
        self._clients += 1
        key = frame(b"K", self._clients.to_bytes(4, "big") + b"\0\0\0\1")
        writer.write(frame(b"R", b"\0\0\0\0") + server.greeting + key + frame(_READY, b"I"))
        self._free.append(server)
        while True:
            kind, body = await message(reader)
            if kind == b"X":
                return
            server = await self._borrow(startup)
            await self._transaction(server, frame(kind, body), reader, writer)
            self._free.append(server)

    async def _transaction(
        self,
        server: Server,
        first: bytes,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Pass messages both ways until the server is idle outside of a transaction."""
        server.writer.write(first)
        done = asyncio.Event()
        syncs = 1 if first[:1] in b"QS" else 0

        async def upwards() -> None:
            nonlocal syncs
            while True:
                kind, body = await message(reader)
                syncs += kind in b"QS"
                server.writer.write(frame(kind, body))

        async def downwards() -> None:
            nonlocal syncs
            while True:
                kind, body = await message(server.reader)
                writer.write(frame(kind, body))
                if kind == _READY:
                    syncs -= 1
                    if body == b"I" and syncs <= 0:
                        done.set()
                        return

        up = asyncio.ensure_future(upwards())
        down = asyncio.ensure_future(downwards())
        await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        if not done.is_set():
            server.writer.close()
            raise ConnectionResetError("a client left in the middle of a transaction")

    async def _borrow(self, startup: bytes) -> Server:
        if self._free:
            return self._free.pop()
        server = Server(*await asyncio.open_connection(*self._target))
        self._writers.append(server.writer)
        await server.start(startup)
        return server

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


@asynccontextmanager
async def transaction_pooler(dsn: str) -> AsyncIterator[str]:
    """The DSN of a pooler in front of the DSN's server, which must ask for no password."""
    parts = urlsplit(dsn)
    pooler = TransactionPooler(parts.hostname or "127.0.0.1", parts.port or 5432)
    server = await asyncio.start_server(pooler.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"postgresql://{parts.username}@127.0.0.1:{port}{parts.path}"
    finally:
        server.close()
        pooler.close()


async def first_packet(reader: asyncio.StreamReader) -> bytes:
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length, "big") - 4)


async def message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readexactly(5)
    return head[:1], await reader.readexactly(int.from_bytes(head[1:], "big") - 4)


def frame(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body
