"""Finds out whether those who take the volatile streams of a runner are still there.

Asks ``cluster.reception`` who has said nothing for long, and the storage whether such a process has
a session; the streams of one that has none are ended.
"""

import asyncio
import logging
from collections.abc import Set
from datetime import timedelta
from typing import Self
from uuid import UUID

from engine.cluster.postman import Postman
from engine.cluster.reception import Reception
from engine.storage.protocol import Storage

log: logging.Logger = logging.getLogger(__name__)


class Callers:
    """``postman`` is the runner's; ``ttl`` is how long a live process may say nothing. One whose
    code blocks its event loop says nothing either, but keeps its sessions."""

    def __init__(
        self, *, storage: Storage, reception: Reception, postman: Postman, ttl: timedelta
    ) -> None:
        self._storage = storage
        self._reception = reception
        self._postman = postman
        self._ttl = ttl.total_seconds()
        self._group = asyncio.TaskGroup()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._task = self._group.create_task(self._run(), name="callers")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
        await self._group.__aexit__(None, None, None)

    async def _run(self) -> None:
        failing = False
        while True:
            await asyncio.sleep(self._ttl / 2)
            try:
                if self._silent():
                    await self._look()
                failing = False
            except Exception as error:  # whatever it was, the streams go on waiting
                if not failing:
                    log.warning("cannot look after those who take streams", exc_info=error)
                failing = True

    async def _look(self) -> None:
        await self._postman.fetch()  # something of theirs may have come
        present = await self._storage.present(self._silent())
        for sender in self._silent() - present:
            log.info("streams end, as the process that took them is gone: %s", sender)
            self._reception.end_streams(sender)

    def _silent(self) -> Set[UUID]:
        return self._reception.silent(self._ttl)
