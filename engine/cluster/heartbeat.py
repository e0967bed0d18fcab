"""A runner's heartbeat: a thread with an event loop and a session of its own.

So neither a busy lane nor Python code that blocks the host's event loop delays a sign of life. The
register comes from ``storage``; news go to ``membership`` on the host loop.
"""

import asyncio
import logging
import random
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from engine.cluster.backoff import Backoff
from engine.cluster.undertaker import Undertaker
from engine.cluster.view import View
from engine.cluster.watchdog import Watchdog
from engine.core.clock import monotonic
from engine.core.errors import EngineError, NotGranted, OwnershipLost, StorageUnavailable
from engine.core.ids import RunnerId
from engine.storage.protocol import Registry, RunnerLoad, RunnerRow

logger: logging.Logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Drained:
    """The register says that this runner takes no shards any more."""


@dataclass(frozen=True, slots=True)
class TookOver:
    """A dead runner's last session has ended: its locks are free."""

    runner: RunnerId


@dataclass(frozen=True, slots=True)
class DeclaredDead:
    """A peer buried this runner; its sessions are being ended."""


@dataclass(frozen=True, slots=True)
class Ended:
    """The thread is done; no news follow. ``error`` is what ended it, if anything."""

    error: BaseException | None


News = View | Drained | TookOver | DeclaredDead | Ended


class Heartbeat:
    """One incarnation's thread; its public methods are for the host's.

    It registers the runner, beats every ``interval``, and lets the ``Undertaker`` work in between.
    While the database cannot be reached it keeps trying; a turn that takes half a ``ttl`` costs
    the connection. ``load`` is what the next beat says that the runner has in hand; the host
    replaces it and never changes it.
    """

    def __init__(
        self,
        *,
        runner: RunnerRow,
        open_registry: Callable[[], Awaitable[Registry]],
        watchdog: Watchdog,
        host: asyncio.AbstractEventLoop,
        tell: Callable[[News], None],
        interval: timedelta,
        ttl: timedelta,
    ) -> None:
        self._runner = runner
        self._open_registry = open_registry
        self._watchdog = watchdog
        self._host = host
        self._listener = tell
        self._interval = interval.total_seconds()
        self._patience = ttl.total_seconds() / 2
        self._undertaker = Undertaker(
            me=runner.id,
            taken_over=lambda dead: self._tell(TookOver(dead)),
            interval=interval,
            ttl=ttl,
        )
        self._outage = Backoff(initial=timedelta(milliseconds=50), maximum=interval)
        self._extra: dict[str, object] = {"runner": str(runner.id)}
        self._thread = threading.Thread(
            target=self._run, name=f"outlast-heartbeat-{runner.id}", daemon=True
        )
        self.load: RunnerLoad | None = None
        # Below: written on the thread's own loop only, some of it read from the host's thread.
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()
        self._registry: Registry | None = None
        self._registered = False
        self._announced = True
        self._drain_wanted = False
        self._drained = False
        self._leaving = False
        self._dead = False
        self._unreachable = False
        self._due = 0.0

    # --- the host's side ---

    @property
    def unreachable(self) -> bool:
        """Whether the register could not be reached at the last try."""
        return self._unreachable

    @property
    def lag(self) -> timedelta:
        """How late the host's event loop answers; see ``Watchdog``."""
        return self._watchdog.lag

    def start(self) -> None:
        self._thread.start()

    def refresh(self) -> None:
        """Beat now. Several calls before it happens are one."""
        self._do(self._hasten)

    def announce(self, runner: RunnerRow) -> None:
        """Enter the runner's row again, with what is new in it."""

        def ask() -> None:
            self._runner = runner
            self._announced = False
            self._hasten()

        self._do(ask)

    def drain(self) -> None:
        def ask() -> None:
            self._drain_wanted = True
            self._hasten()

        self._do(ask)

    def leave(self) -> None:
        """End the thread, and the runner's row unless it has been declared dead."""

        def ask() -> None:
            self._leaving = True
            self._wake.set()

        self._do(ask)

    def join(self) -> None:
        """Wait for the thread, which is about to end once ``Ended`` was told."""
        self._thread.join()

    def _do(self, action: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # the thread's loop is closed: it has ended
            self._loop.call_soon_threadsafe(action)

    # --- the thread ---

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as thread:
                thread.run(self._main())
        except BaseExceptionGroup as ended:
            error = ended.exceptions[0]
        except BaseException as ended:  # noqa: BLE001 the host is told, and decides
            error = ended
        self._tell(Ended(error))

    async def _main(self) -> None:
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(self._watchdog.watch())
            try:
                while not self._leaving and not self._dead:
                    await self._attend()
                    await self._rest()
                if not self._dead:
                    await self._depart()
            finally:
                await self._hang_up()
                watching.cancel()

    async def _attend(self) -> None:
        if self._watchdog.given_up:
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._turn(self._registry or await self._dial())
        except OwnershipLost:
            self._die()
        except Exception as error:
            away = isinstance(error, StorageUnavailable) and not isinstance(error, NotGranted)
            fatal = isinstance(error, EngineError) and not away
            if fatal and not self._registered:
                raise
            await self._hang_up()
            self._note_outage(error)
        else:
            self._note_recovery()

    async def _rest(self) -> None:
        if self._leaving or self._dead:
            return
        if self._watchdog.given_up:
            delay = self._interval / 2
        elif self._unreachable:
            delay = self._outage.wait
        else:
            delay = min(self._due - monotonic(), self._undertaker.wait)
        with suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, delay)):
                await self._wake.wait()
        self._wake.clear()

    async def _turn(self, registry: Registry) -> None:
        if not self._registered or not self._announced:
            self._announced = True
            try:
                await registry.register(replace(self._runner, draining=self._drained))
            except BaseException:
                self._announced = False
                raise
            self._registered = True
        if self._drain_wanted and not self._drained:
            await registry.drain(self._runner.id)
            self._drained = True
            self._tell(Drained())
        if monotonic() >= self._due:
            await self._beat(registry)
        if not self._dead and await self._undertaker.proceed(registry):
            self._due = 0.0

    async def _beat(self, registry: Registry) -> None:
        sent = monotonic()
        self._due = sent + self._interval * random.uniform(0.95, 1.05)
        beat = await registry.beat(self._runner.id, self.load)
        if not beat.alive:
            self._die()
            return
        view = View(
            me=self._runner.id,
            now=beat.now,
            runners=tuple(beat.runners),
            sent=sent,
            received=monotonic(),
            post=beat.post,
            pauses=beat.pauses,
        )
        view = self._undertaker.judge(view, server_up=beat.now - beat.server_started)
        self._tell(view)
        await self._undertaker.look(registry, view)

    def _die(self) -> None:
        self._dead = True
        self._tell(DeclaredDead())

    async def _depart(self) -> None:
        if not self._registered:
            return
        try:
            async with asyncio.timeout(self._patience):
                await self._leave()
        except Exception as error:
            away = isinstance(error, StorageUnavailable | TimeoutError | OSError)
            logger.warning(
                "the runner could not say that it leaves; its peers will find it dead: %s",
                _in_words(error),
                exc_info=None if away else error,
                extra=self._extra,
            )

    async def _leave(self) -> None:
        registry = self._registry or await self._open_registry()
        self._registry = registry
        await registry.leave(self._runner.id)

    async def _dial(self) -> Registry:
        self._registry = await self._open_registry()
        self._due = 0.0
        return self._registry

    async def _hang_up(self) -> None:
        registry, self._registry = self._registry, None
        if registry is None:
            return
        try:
            async with asyncio.timeout(1):
                await registry.close()
        except Exception as error:
            logger.debug("the register did not close", exc_info=error, extra=self._extra)

    def _note_outage(self, error: Exception) -> None:
        self._outage.failed()
        if not self._unreachable:
            self._unreachable = True
            logger.warning(
                "the heartbeat does not reach the database and keeps trying: %s",
                _in_words(error),
                extra=self._extra,
            )

    def _note_recovery(self) -> None:
        self._outage.reset()
        if self._unreachable:
            self._unreachable = False
            logger.warning("the heartbeat reaches the database again", extra=self._extra)

    def _hasten(self) -> None:
        self._due = 0.0
        self._wake.set()

    def _tell(self, news: News) -> None:
        try:
            self._host.call_soon_threadsafe(self._listener, news)
        except RuntimeError:  # the host loop is closed, nobody is left to beat for
            self._leaving = True


def _in_words(error: Exception) -> str:
    """A time-out has no message."""
    return str(error) or type(error).__name__
