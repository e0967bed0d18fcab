"""The replies a process waits for, whoever sent the request and wherever it is handled.

A waiter registers, then reads, then waits for the doorbell; the finisher commits, then looks for
waiters. So one of them always sees the other. A poll loop underneath needs neither.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Protocol, Self
from weakref import WeakValueDictionary

from engine.cluster.stream_reader import Acknowledge, StreamReader
from engine.core.clock import monotonic
from engine.core.errors import ConfigurationError, InvalidPayload, NotFound, StorageUnavailable
from engine.core.ids import Snowflake
from engine.core.reply import Exit, ReplyKind, decode_exit
from engine.core.retry import again_in
from engine.storage.protocol import NewReply, Storage, StoredReply

log: logging.Logger = logging.getLogger(__name__)
GONE = (
    "it has ended and was pruned, the transaction that starts it has not committed, or a fail-over"
    " has lost it"
)
_READ = 1000
_LINGER = 1.0
_LOOK_AFTER = 2.0
_LOOK_EVERY = 60.0
_REMIND_EVERY = 10.0
_CLOSED = "this client is closed; open a new one"


class Waiter(Protocol):
    """Somebody who waits for replies of one request. ``after``: the last sequence that has come to
    it; None if it waits for the exit alone. ``ended``: nothing more can come to it. ``consumes``:
    chunks that it has been given are taken."""

    @property
    def after(self) -> int | None: ...
    @property
    def ended(self) -> bool: ...
    @property
    def consumes(self) -> bool: ...
    def replied(self, reply: StoredReply | NewReply, *, pushed: bool) -> None: ...
    def fail(self, error: Exception) -> None: ...


class ReplyBoard:
    """Waiters by request id. Any number of callers may wait for one request.

    ``poll`` gives the time between two reads of everything awaited.
    """

    def __init__(self, *, storage: Storage, poll: Callable[[], timedelta]) -> None:
        self._storage = storage
        self._poll = poll
        self._waiting: dict[Snowflake, set[Waiter]] = {}
        self._volatile: set[Snowflake] = set()
        self._kept: WeakValueDictionary[Snowflake, KeptReplies] = WeakValueDictionary()
        self._unwatched: set[Snowflake] = set()
        self._unread: set[Snowflake] = set()
        self._unsent: set[Snowflake] = set()
        self._doubtful: set[Snowflake] = set()
        self._doubted: set[Snowflake] = set()
        self._looking: asyncio.TimerHandle | None = None
        self._looked = self._reminded = monotonic()
        self._rung: set[Snowflake] = set()
        self._wake = asyncio.Event()
        self._registered: set[Snowflake] = set()
        self._left: set[Snowflake] = set()
        self._leaving: asyncio.TimerHandle | None = None
        self._unwatch_now = False
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
        for alarm in (self._alarm, self._leaving, self._looking):
            if alarm is not None:
                alarm.cancel()
        for waiters in self._waiting.values():
            for waiter in waiters:
                if isinstance(waiter, StreamReader):
                    waiter.fail(StorageUnavailable(_CLOSED))
                elif isinstance(waiter, _ExitWaiter):
                    waiter.exit.cancel()
        await self._group.__aexit__(None, None, None)
        left = self._left | self._registered
        if left:
            with suppress(StorageUnavailable, TimeoutError, OSError):  # then a sweep does it
                async with asyncio.timeout(_LINGER):
                    await self._storage.unwatch(sorted(left))

    async def wait(self, request_id: Snowflake) -> Exit:
        """The exit of a request, stored or to come, whoever sent it; ``NotFound`` when the request
        itself is not stored: it was pruned, for which it had to end."""
        with self.expect(request_id) as answer:
            self.sent(request_id)
            self.watch(request_id)
            self._doubt(request_id)
            return await answer

    @contextmanager
    def expect(self, request_id: Snowflake) -> Generator["asyncio.Future[Exit]", None, None]:
        """The exit of a request that is about to be saved with ``wait``, so that nothing needs to
        be registered or read."""
        waiter = _ExitWaiter()
        self._unsent.add(request_id)
        with self._awaited(request_id, waiter):
            yield waiter.exit

    @contextmanager
    def stream(
        self,
        request_id: Snowflake,
        *,
        first: int | None = None,
        registered: bool = False,
        acknowledge: Acknowledge | None = None,
    ) -> Generator[StreamReader, None, None]:
        """The chunks of a request from ``first`` on (without it, those that are not acknowledged),
        and its exit. ``registered``: it is about to be saved with ``wait``."""
        reader = StreamReader(
            request_id=request_id,
            first=first,
            watch=self.watch,
            acknowledge=acknowledge,
            registered=registered,
        )
        if registered:
            self._unsent.add(request_id)
        with self._awaited(request_id, reader):
            yield reader

    def sent(self, request_id: Snowflake) -> None:
        """The request is stored: when it is not any more, it is waited for in vain."""
        self._unsent.discard(request_id)

    @contextmanager
    def _awaited(self, request_id: Snowflake, waiter: Waiter) -> Generator[None, None, None]:
        if self._closing:
            raise StorageUnavailable(_CLOSED)
        waiters = self._waiting.setdefault(request_id, set())
        waiters.add(waiter)
        self._registered.add(request_id)
        self._arm()
        try:
            yield
        finally:
            waiters.discard(waiter)
            if not waiters and self._waiting.get(request_id) is waiters:
                self._forget(request_id)

    def _forget(self, request_id: Snowflake) -> None:
        del self._waiting[request_id]
        self._unsent.discard(request_id)
        self._volatile.discard(request_id)
        if request_id in self._registered:
            self._registered.discard(request_id)
            self._left.add(request_id)
            if self._leaving is None and not self._closing:
                loop = asyncio.get_running_loop()
                self._leaving = loop.call_later(_LINGER, self._unwatch_soon)

    def _unwatch_soon(self) -> None:
        self._leaving = None
        self._unwatch_now = True
        self._wake.set()

    def watch(self, request_id: Snowflake) -> None:
        """Register for the request's replies, then read them."""
        if request_id in self._waiting and request_id not in self._volatile:
            self._unwatched.add(request_id)
            self._wake.set()

    def _doubt(self, request_id: Snowflake) -> None:
        """Look in a while whether the request is stored, if there is no reply by then. All that are
        doubted in that time are looked for together."""
        if request_id not in self._volatile:
            self._doubtful.add(request_id)
            if self._looking is None:
                self._looking = asyncio.get_running_loop().call_later(_LOOK_AFTER, self._look_soon)

    def _doubt_all(self) -> None:
        self._looked = monotonic()
        for request_id in self._waiting.keys() - self._unsent:
            self._doubt(request_id)

    def _look_soon(self) -> None:
        self._looking = None
        self._doubted |= self._doubtful & self._stored
        self._doubtful = set()
        self._wake.set()

    def read(self, request_id: Snowflake, acked: int) -> None:
        """Read the request's replies: this process has been registered for more of them, and the
        chunks up to ``acked`` are acknowledged."""
        if request_id in self._waiting:
            for waiter in self._waiting[request_id]:
                if isinstance(waiter, StreamReader):
                    waiter.lags = acked < waiter.after
            self._registered.add(request_id)
            self._unread.add(request_id)
            self._wake.set()

    def replied(self, reply: StoredReply | NewReply) -> bool:
        """A reply that was committed by this very process; whether it has come to the one consumer
        of the stream."""
        waiters = self._waiting.get(reply.request_id, ())
        if reply.kind is not ReplyKind.CHUNK:
            self._registered.discard(reply.request_id)  # its commit is rung as well
        for waiter in waiters:
            waiter.replied(reply, pushed=True)
        return any(waiter.consumes for waiter in waiters)

    # --- volatile requests, whose replies are brought here and never stored -----------------------

    def volatile(self, request_id: Snowflake) -> None:
        """A request that is awaited is volatile: nothing of it is to be read."""
        if request_id in self._waiting:
            self._volatile.add(request_id)
            self._registered.discard(request_id)

    def keep(self, request_id: Snowflake) -> "KeptReplies":
        """Gather the replies of a volatile request that is about to be sent, until its exit."""
        if self._closing:
            raise StorageUnavailable(_CLOSED)
        if request_id in self._waiting:
            raise ConfigurationError(
                f"request {request_id} is awaited already; give each request an id of its own"
            )
        reader = StreamReader(
            request_id=request_id, first=0, watch=self.watch, acknowledge=None, registered=True
        )
        waiter = _ExitWaiter()
        self._waiting.setdefault(request_id, set()).update((reader, waiter))
        self._volatile.add(request_id)
        kept = self._kept[request_id] = KeptReplies(exit=waiter.exit, reader=reader)
        return kept

    def keeps(self, request_id: Snowflake) -> bool:
        """Whether somebody still has what was kept of this request, ended or not."""
        return request_id in self._kept

    def delivered(self, reply: StoredReply) -> None:
        """A reply of a volatile request. Its waiters are forgotten with the exit."""
        waiters = self._waiting.get(reply.request_id)
        if waiters is None or reply.request_id not in self._volatile:
            return
        for waiter in waiters:
            if waiter.after is not None and reply.sequence > waiter.after + 1:
                waiter.fail(_lost_chunks(reply.request_id, waiter.after + 1))
            else:
                waiter.replied(reply, pushed=True)
        if reply.kind is not ReplyKind.CHUNK:
            self._forget(reply.request_id)

    def failed(self, request_id: Snowflake, error: Exception) -> None:
        """There will be no exit of a volatile request."""
        if request_id in self._volatile:
            for waiter in self._waiting[request_id]:
                waiter.fail(error)
            self._forget(request_id)

    def drop(self, request_id: Snowflake) -> None:
        """Nobody asks any more for what was kept."""
        if request_id in self._volatile:
            self._forget(request_id)

    def rung(self, requests: Iterable[Snowflake]) -> None:
        """The doorbell says that these have replies; read those that are awaited here."""
        mine = self._stored & set(requests)
        if mine:
            self._registered -= mine
            self._rung.update(mine)
            self._wake.set()

    def restored(self) -> None:
        """The doorbell was out: register and read everything again. It may be another server's,
        which took over and does not have all that the last one had."""
        self._unwatched.update(self._stored)
        self._doubt_all()
        self._remind(self._stored, everyone=True)
        self._wake.set()

    def read_again(self) -> None:
        """Somebody may have committed replies and died before telling anybody: read everything."""
        self._unread.update(self._stored)
        self._wake.set()

    @property
    def _stored(self) -> Set[Snowflake]:
        """What is awaited and can be read."""
        return self._waiting.keys() - self._volatile

    def _arm(self) -> None:
        if self._alarm is None and self._waiting and not self._closing:
            delay = self._poll().total_seconds() * random.uniform(0.8, 1.2)
            self._alarm = asyncio.get_running_loop().call_later(delay, self._poll_now)

    def _poll_now(self) -> None:
        self._alarm = None
        if monotonic() - self._looked > _LOOK_EVERY:
            self._doubt_all()
        self.read_again()
        self._remind(self._stored, everyone=monotonic() - self._reminded > _REMIND_EVERY)
        self._arm()

    async def _run(self) -> None:
        failures = 0
        while not self._closing:
            work = self._unwatched or self._unread or self._rung
            if not (work or self._unwatch_now or self._doubted):
                self._wake.clear()
                await self._wake.wait()
                continue
            unwatched, self._unwatched = self._unwatched, set()
            rung, self._rung = self._rung, set()
            unread = (self._unread | unwatched | rung) & self._stored
            self._unread = set()
            try:
                await self._unwatch()
                if unwatched:
                    self._registered |= unwatched & self._waiting.keys()
                    await self._storage.watch(sorted(unwatched))
                before = self._after(unread)
                for ids in _chunks(sorted(unread)):
                    await self._read(ids, before)
                self._watch_again(rung - unwatched, before)
                await self._look()
                failures = 0
            except Exception as error:  # whatever it was, waiters go on waiting
                failures += 1
                if failures == 1:
                    unexpected = None if isinstance(error, StorageUnavailable) else error
                    log.warning("cannot read replies, trying again: %s", error, exc_info=unexpected)
                self._unwatched |= unwatched
                self._rung |= rung
                self._unread |= unread
                await asyncio.sleep(again_in(failures))

    async def _unwatch(self) -> None:
        """Take back the registrations of those who left before a ring used them up: what they
        waited for had ended already, or they gave up."""
        if self._unwatch_now:
            self._unwatch_now = False
            self._left -= self._waiting.keys()
            for ids in _chunks(sorted(self._left)):
                await self._storage.unwatch(ids)
                self._left.difference_update(ids)

    async def _look(self) -> None:
        """Tell those who wait for what is gone."""
        self._doubted &= self._stored
        for ids in _chunks(sorted(self._doubted)):
            stored = await self._storage.stored(ids)
            for id in set(ids).difference(stored):
                for waiter in self._waiting.get(id, ()):
                    waiter.fail(NotFound(f"request {id} is not stored: {GONE}"))
            self._doubted.difference_update(ids)

    async def _read(self, ids: Sequence[Snowflake], after: Mapping[Snowflake, int]) -> None:
        behind = {id: after[id] for id in ids if id in after}
        for reply in await self._storage.replies(ids, after=behind):
            for waiter in self._waiting.get(reply.request_id, ()):
                waiter.replied(reply, pushed=False)

    def _after(self, requests: Iterable[Snowflake]) -> dict[Snowflake, int]:
        """Behind which sequence to read, where nobody needs what comes before."""
        found: dict[Snowflake, int] = {}
        for request in requests:
            seen = [waiter.after for waiter in self._waiting.get(request, ())]
            known = [after for after in seen if after is not None]
            if known and len(known) == len(seen):
                found[request] = min(known)
        return found

    def _watch_again(self, rung: set[Snowflake], before: Mapping[Snowflake, int]) -> None:
        """A ring uses a registration up: register those it has brought nothing. (Those it has
        brought chunks ask for more themselves.) It may have been for chunks that had come before a
        fail-over lost them."""
        after = self._after(rung)
        for request in rung & self._waiting.keys():
            waits = not all(waiter.ended for waiter in self._waiting[request])
            if waits and after.get(request) == before.get(request):
                self.watch(request)
                self._remind([request], everyone=False)

    def _remind(self, requests: Iterable[Snowflake], *, everyone: bool) -> None:
        """Have consumers acknowledge again, those that lag or ``everyone``."""
        if everyone:
            self._reminded = monotonic()
        for request in requests:
            for waiter in self._waiting[request]:
                if isinstance(waiter, StreamReader) and (everyone or waiter.lags):
                    waiter.remind()

    def acknowledged(self, request_id: Snowflake, again: Callable[[], None]) -> None:
        """Somebody has acknowledged chunks that he was given by a reader of this process, which
        knows by this how to say it ``again``."""
        for waiter in self._waiting.get(request_id, ()):
            if isinstance(waiter, StreamReader):
                waiter.reminder = again


@dataclass(frozen=True, slots=True, kw_only=True, weakref_slot=True)
class KeptReplies:
    """What comes of a volatile request, for whoever asks for it later."""

    exit: "asyncio.Future[Exit]"
    reader: StreamReader


class _ExitWaiter:
    """Waits for the exit alone."""

    __slots__ = ("exit",)

    def __init__(self) -> None:
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def after(self) -> None:
        return None

    @property
    def ended(self) -> bool:
        return self.exit.done()

    @property
    def consumes(self) -> bool:
        return False

    def replied(self, reply: StoredReply | NewReply, *, pushed: bool) -> None:
        if reply.kind is not ReplyKind.CHUNK and not self.exit.done():
            try:
                self.exit.set_result(decode_exit(reply.kind, reply.payload))
            except InvalidPayload as error:  # of this reply alone, not of those read with it
                self.fail(error)

    def fail(self, error: Exception) -> None:
        if not self.exit.done():
            self.exit.set_exception(error)
            self.exit.exception()  # its waiter may have gone for the same reason


def _lost_chunks(request_id: Snowflake, expected: int) -> StorageUnavailable:
    return StorageUnavailable(
        f"chunk {expected} of the volatile stream {request_id} was lost on its way; call again"
    )


def _chunks(ids: Sequence[Snowflake]) -> Iterable[Sequence[Snowflake]]:
    return (ids[i : i + _READ] for i in range(0, len(ids), _READ))
