"""Servers that nobody can have at hand: one that refuses the password, one that is too old.

They speak as much of PostgreSQL's protocol as it takes to connect.
"""

import socketserver
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SSL_REQUEST = 80877103
_GSS_REQUEST = 80877104


@contextmanager
def fake_server(*answer: bytes) -> Iterator[str]:
    """A server that answers each start-up with these messages; its DSN."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while True:
                (length,) = struct.unpack("!i", self.rfile.read(4))
                (code,) = struct.unpack("!i", self.rfile.read(length - 4)[:4])
                if code not in {_SSL_REQUEST, _GSS_REQUEST}:
                    break
                self.wfile.write(b"N")
            self.wfile.write(b"".join(answer))
            self.rfile.read(1)

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"postgresql://someone:secret@127.0.0.1:{server.server_address[1]}/shop"
        finally:
            server.shutdown()
            thread.join()


def message(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body


def error(code: str, text: str) -> bytes:
    fields = {b"S": "FATAL", b"V": "FATAL", b"C": code, b"M": text}
    body = b"".join(name + value.encode() + b"\0" for name, value in fields.items())
    return message(b"E", body + b"\0")


WRONG_PASSWORD = (error("28P01", 'password authentication failed for user "someone"'),)
TOO_OLD = (
    message(b"R", struct.pack("!i", 0)),
    message(b"S", b"server_version\x0013.9\0"),
    message(b"S", b"client_encoding\x00UTF8\0"),
    message(b"K", struct.pack("!ii", 1, 1)),
    message(b"Z", b"I"),
)
