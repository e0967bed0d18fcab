"""TLS in front of a server that has none, as one does it with ``hostssl … clientcert=verify-ca``.

The embedded server is built without TLS; what is tested is our side of it.
"""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from tests.storage.pooler import first_packet, frame

_SSL_REQUEST = 80877103
_IN_THE_CLEAR = b'no pg_hba.conf entry for host "127.0.0.1", no encryption'
_UNKNOWN = b"connection requires a valid client certificate"


class TlsProxy:
    """``roles`` are those of the engine's sessions that came through; what comes in the clear is
    refused and counted."""

    def __init__(self, host: str, port: int, context: ssl.SSLContext) -> None:
        self.roles: set[str] = set()
        self.refused = 0
        self._target = (host, port)
        self._context = context
        self._open: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.append(writer)
        with suppress(asyncio.IncompleteReadError, OSError):
            await self._serve(reader, writer)
        writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        packet = await first_packet(reader)
        if int.from_bytes(packet[4:8], "big") != _SSL_REQUEST:
            self.refused += 1
            await _refuse(writer, _IN_THE_CLEAR)
            return
        writer.write(b"S")
        await writer.drain()
        await writer.start_tls(self._context)
        startup = await first_packet(reader)
        if not writer.get_extra_info("ssl_object").getpeercert():
            await _refuse(writer, _UNKNOWN)
            return
        if named := re.search(rb"application_name\0outlast:[^:]*:([^\0]*)\0", startup):
            self.roles.add(named[1].decode())
        inward, outward = await asyncio.open_connection(*self._target)
        self._open.append(outward)
        outward.write(startup)
        pipes = [
            asyncio.ensure_future(_pipe(*each)) for each in ((reader, outward), (inward, writer))
        ]
        await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)
        outward.close()

    def close(self) -> None:
        for writer in self._open:
            writer.close()


async def _refuse(writer: asyncio.StreamWriter, why: bytes) -> None:
    writer.write(frame(b"E", b"SFATAL\0VFATAL\0C28000\0M" + why + b"\0\0"))
    await writer.drain()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while read := await reader.read(1 << 16):
        writer.write(read)
        await writer.drain()


@asynccontextmanager
async def tls_proxy(dsn: str, context: ssl.SSLContext) -> AsyncIterator[tuple[TlsProxy, str]]:
    """A proxy in front of the DSN's server, which must ask for no password; and its DSN."""
    parts = urlsplit(dsn)
    proxy = TlsProxy(parts.hostname or "127.0.0.1", parts.port or 5432, context)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield proxy, f"postgresql://{parts.username}@localhost:{port}{parts.path}"
    finally:
        server.close()
        proxy.close()
