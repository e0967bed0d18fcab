"""The replies a process waits for, whoever sent the request and wherever it is handled.

A waiter registers, then reads, then waits for the doorbell; the finisher commits, then looks for
waiters. So one of them always sees the other. A poll loop underneath needs neither.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Self

from engine.core.errors import StorageUnavailable
from engine.core.ids import Snowflake
from engine.core.reply import Exit, ReplyKind, decode_exit
from engine.storage.protocol import Storage, StoredReply

log: logging.Logger = logging.getLogger(__name__)
_READ = 1000


class ReplyBoard:
    """Futures by request id. Any number of callers may wait for one request.

    ``poll`` gives the time between two reads of everything awaited.
    """

    def __init__(self, *, storage: Storage, poll: Callable[[], timedelta]) -> None:
        self._storage = storage
        self._poll = poll
        self._waiting: dict[Snowflake, set[asyncio.Future[Exit]]] = {}
        self._unwatched: set[Snowflake] = set()
        self._unread: set[Snowflake] = set()
        self._wake = asyncio.Event()
        self._alarm: asyncio.TimerHandle | None = None
        self._group = asyncio.TaskGroup()
        self._closing = False

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._group.create_task(self._run(), name="replies")
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._closing = True
        self._wake.set()
        if self._alarm is not None:
            self._alarm.cancel()
        for futures in self._waiting.values():
            for future in futures:
                future.cancel()
        await self._group.__aexit__(None, None, None)

    async def wait(self, request_id: Snowflake) -> Exit:
        """The exit of a request, stored or to come, whoever sent it."""
        with self.expect(request_id) as answer:
            self._unwatched.add(request_id)
            self._wake.set()
            return await answer

    @contextmanager
    def expect(self, request_id: Snowflake) -> Generator["asyncio.Future[Exit]", None, None]:
        """The exit of a request that is about to be saved with ``wait``, so that nothing needs to
        be registered or read."""
        if self._closing:
            raise StorageUnavailable("this client is closed; open a new one")
        future: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()
        futures = self._waiting.setdefault(request_id, set())
        futures.add(future)
        self._arm()
        try:
            yield future
        finally:
            futures.discard(future)
            if not futures and self._waiting.get(request_id) is futures:
                del self._waiting[request_id]

    def finished(self, request_id: Snowflake, kind: ReplyKind, payload: bytes) -> None:
        """An exit that was committed by this very process."""
        futures = self._waiting.get(request_id)
        if futures:
            exit = decode_exit(kind, payload)
            for future in futures:
                if not future.done():
                    future.set_result(exit)

    def rung(self, requests: Iterable[Snowflake]) -> None:
        """The doorbell says that these have replies; read those that are awaited here."""
        mine = [request for request in requests if request in self._waiting]
        if mine:
            self._unread.update(mine)
            self._wake.set()

    def restored(self) -> None:
        """The doorbell was out: register and read everything again."""
        self._unwatched.update(self._waiting)
        self._wake.set()

    def _arm(self) -> None:
        if self._alarm is None and self._waiting and not self._closing:
            delay = self._poll().total_seconds() * random.uniform(0.8, 1.2)
            self._alarm = asyncio.get_running_loop().call_later(delay, self._poll_now)

    def _poll_now(self) -> None:
        self._alarm = None
        self._unread.update(self._waiting)
        self._wake.set()
        self._arm()

    async def _run(self) -> None:
        failures = 0
        while not self._closing:
            if not (self._unwatched or self._unread):
                self._wake.clear()
                await self._wake.wait()
                continue
            unwatched, self._unwatched = self._unwatched, set()
            unread = (self._unread | unwatched) & self._waiting.keys()
            self._unread = set()
            try:
                if unwatched:
                    await self._storage.watch(sorted(unwatched))
                for ids in _chunks(sorted(unread)):
                    self._resolve(await self._storage.replies(ids))
                failures = 0
            except Exception as error:  # whatever it was, waiters go on waiting
                failures += 1
                if failures == 1:
                    log.warning("cannot read replies, trying again", exc_info=error)
                self._unwatched |= unwatched
                self._unread |= unread
                await asyncio.sleep(min(5.0, 0.05 * 2**failures) * random.uniform(0.5, 1))

    def _resolve(self, replies: Sequence[StoredReply]) -> None:
        for reply in replies:
            if reply.kind is not ReplyKind.CHUNK:
                self.finished(reply.request_id, reply.kind, reply.payload)


def _chunks(ids: Sequence[Snowflake]) -> Iterable[Sequence[Snowflake]]:
    return (ids[i : i + _READ] for i in range(0, len(ids), _READ))
