"""Fetches the volatile messages that have come for one channel, when the doorbell says so.

From ``Storage.take_post``; on to ``cluster.volatile`` (replies, on a client's channel) or
``cluster.reception`` (requests, on a runner's).
"""

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Self

from engine.core.retry import again_in
from engine.storage.protocol import Received, Storage

log: logging.Logger = logging.getLogger(__name__)
_LAST = 1.0
_SWEEP_EVERY = 60.0
_STALE = timedelta(minutes=5)


class Postman:
    """Hands on what has come, in order. ``receive`` must not raise.

    With ``poll``, which gives the time between two looks nobody asked for, it looks without a ring
    as well, and throws away now and then what nobody will fetch or wait for any more. Without it,
    somebody calls ``fetch``.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        receive: Callable[[Iterable[Received]], None],
        poll: Callable[[], timedelta] | None = None,
    ) -> None:
        self._storage = storage
        self._receive = receive
        self._poll = poll
        self._turn = asyncio.Lock()
        self._wake = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._closing = False
        self._swept = 0.0

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._group.create_task(self._run(), name="postman")
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Look once more: who has sent to a runner that stops gets it back."""
        self._closing = True
        self._wake.set()
        await self._group.__aexit__(None, None, None)

    def rung(self) -> None:
        """The doorbell says that there is something."""
        self._wake.set()

    async def fetch(self) -> None:
        """Returns when what was there has been handed on."""
        async with self._turn:
            while messages := await self._storage.take_post():
                self._receive(messages)

    async def _run(self) -> None:
        failures = 0
        self._swept = asyncio.get_running_loop().time()
        while not self._closing:
            await self._pause()
            try:
                await self._look()
                failures = 0
            except Exception as error:  # whatever it was, it is tried again
                failures += 1
                if failures == 1:
                    log.warning("cannot fetch volatile messages, trying again", exc_info=error)
                await asyncio.sleep(again_in(failures))
                self._wake.set()

    async def _look(self) -> None:
        if not self._closing:
            await self.fetch()
            await self._sweep()
        elif self._poll is not None:
            async with asyncio.timeout(_LAST):
                await self.fetch()

    async def _pause(self) -> None:
        within = None
        if self._poll is not None:
            within = self._poll().total_seconds() * random.uniform(0.9, 1.3)
        try:
            async with asyncio.timeout(within):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        if self._poll is not None and now - self._swept > _SWEEP_EVERY:
            self._swept = now
            await self._storage.sweep_post(_STALE)
            await self._storage.sweep_waiters()
