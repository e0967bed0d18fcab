"""How a runner fares, for whoever decides whether to restart it or to go on with a deployment.

``Runner.health()`` says it; ``HealthPort`` serves it over HTTP where the settings name a port.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Self

from engine.core.errors import ConfigurationError
from engine.core.ids import RunnerId

log: logging.Logger = logging.getLogger(__name__)

_LONGEST = 8192
_PATIENCE = 5.0
_CALLERS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerHealth:
    """One look at a runner. ``why`` is a sentence about ``ready``; ``beat_age`` is how long ago the
    database answered a heartbeat, None before the first; ``lag`` is the longest that the event loop
    took to answer in the last ten seconds or so; ``notifications`` may be away, it then polls."""

    ready: bool
    why: str
    runner: RunnerId | None = None
    lanes: int = 0
    shards: int = 0
    entities: int = 0
    executions: int = 0
    beat_age: timedelta | None = None
    lag: timedelta = timedelta()
    notifications: bool = False

    def as_json(self) -> dict[str, object]:
        """For JSON: the times in seconds."""
        age = None if self.beat_age is None else round(self.beat_age.total_seconds(), 3)
        runner = None if self.runner is None else str(self.runner)
        lag = round(self.lag.total_seconds(), 3)
        return {**asdict(self), "runner": runner, "beat_age": age, "lag": lag}


class HealthPort:
    """Answers GET and HEAD of ``/live`` (200 as long as the event loop turns) and ``/ready`` (200,
    else 503), each with what ``look`` says as JSON, to up to 64 callers at once.

    Entering raises ``ConfigurationError`` when the port cannot be had; 0 takes a free one, which
    the log names.
    """

    def __init__(self, *, host: str, port: int, look: Callable[[], RunnerHealth]) -> None:
        self._host = host
        self._port = port
        self._look = look
        self._server: asyncio.Server | None = None
        self._callers: set[asyncio.StreamWriter] = set()

    async def __aenter__(self) -> Self:
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self._port, limit=_LONGEST
            )
        except (OSError, OverflowError) as error:
            raise ConfigurationError(
                f"health cannot be served at {self._host}:{self._port} ({error}): choose others"
                " with OUTLAST_HEALTH_HOST and OUTLAST_HEALTH_PORT, or none"
            ) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        log.info("health is served at http://%s:%d/live and /ready", host, port)
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._server is not None
        self._server.close()
        for writer in tuple(self._callers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._callers) >= _CALLERS:
            writer.transport.abort()
            return
        self._callers.add(writer)
        try:
            with suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                async with asyncio.timeout(_PATIENCE):
                    await self._answer(reader, writer)
        finally:
            self._callers.discard(writer)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n", 1)[0]
            method, target, version = request.decode("ascii").split(" ")
        except (asyncio.LimitOverrunError, ValueError):
            method, target, version = "", "", ""
        health = self._look()
        match method, target.partition("?")[0]:
            case _ if not version.startswith("HTTP/1."):
                status = HTTPStatus.BAD_REQUEST
            case (("GET" | "HEAD"), "/live"):
                status = HTTPStatus.OK
            case (("GET" | "HEAD"), "/ready"):
                status = HTTPStatus.OK if health.ready else HTTPStatus.SERVICE_UNAVAILABLE
            case (("GET" | "HEAD"), _):
                status = HTTPStatus.NOT_FOUND
            case _:
                status = HTTPStatus.METHOD_NOT_ALLOWED
        told = health.as_json() if status in _TOLD else {"error": f"{status.phrase}: {_PATHS}"}
        body = json.dumps(told).encode() + b"\n"
        writer.write(
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
        )
        if method != "HEAD":
            writer.write(body)
        await writer.drain()


_TOLD = frozenset({HTTPStatus.OK, HTTPStatus.SERVICE_UNAVAILABLE})
_PATHS = "GET /live or /ready"
