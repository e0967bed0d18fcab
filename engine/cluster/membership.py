"""A runner's life among its peers, as the host's event loop sees it.

``heartbeat`` keeps it in a thread and sends news; ``ownership`` follows its views; the runner
enters one ``Membership`` per incarnation and begins another when ``lost`` is set.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from types import TracebackType
from typing import Self, assert_never

from engine.cluster.heartbeat import DeclaredDead, Drained, Ended, Heartbeat, News, TookOver
from engine.cluster.machine import MachineTenant
from engine.cluster.view import View
from engine.cluster.watchdog import Watchdog
from engine.core.clock import monotonic
from engine.core.errors import ConfigurationError
from engine.core.ids import RunnerId
from engine.storage.protocol import Registry, RunnerLoad, RunnerRow

logger: logging.Logger = logging.getLogger(__name__)


class Membership:
    """One incarnation: from its registration to its leave, or to the moment it is ``lost``.

    Entering returns once the runner is registered and has its first view (or is lost already),
    however long the database takes. ``open_registry`` is called on the heartbeat's thread and
    loop. ``load`` is what the runner has in hand, asked on the host loop for the next heartbeat.
    ``tenants`` are renewed with each. When peers have declared the runner dead, ``declared_dead``
    is called on the host loop at once and ``lost`` is set: drop everything, leave this context, and
    come back as a new ``RunnerRow`` with a new id, new sessions and a new machine id.
    """

    def __init__(
        self,
        *,
        runner: RunnerRow,
        open_registry: Callable[[], Awaitable[Registry]],
        ring_topology: Callable[[], None],
        declared_dead: Callable[[], None] | None = None,
        tenants: Sequence[MachineTenant] = (),
        load: Callable[[], RunnerLoad] | None = None,
        interval: timedelta = timedelta(seconds=2),
        ttl: timedelta = timedelta(seconds=10),
        warn_after: timedelta = timedelta(seconds=1),
        block_limit: timedelta = timedelta(seconds=60),
    ) -> None:
        if ttl < 3 * interval:
            raise ConfigurationError(
                f"a time to live of {ttl} is too short for a heartbeat every {interval}:"
                " give it at least three of them"
            )
        self._runner = runner
        self._open_registry = open_registry
        self._ring_topology = ring_topology
        self._declared_dead = declared_dead
        self._tenants = tenants
        self._load = load
        self._interval = interval
        self._ttl = ttl
        self._warn_after = warn_after
        self._block_limit = block_limit
        self._view: View | None = None
        self._watchers: list[Callable[[View], None]] = []
        self._draining = False
        self._joined = asyncio.Event()
        self._viewed = asyncio.Event()
        self._drained = asyncio.Event()
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None
        self._group = asyncio.TaskGroup()
        self._heartbeat: Heartbeat | None = None
        self.lost: asyncio.Event = asyncio.Event()

    @property
    def id(self) -> RunnerId:
        return self._runner.id

    @property
    def view(self) -> View | None:
        """The latest view; None before the first."""
        return self._view

    @property
    def accepting(self) -> bool:
        """Whether shards may be acquired or given away: neither while draining nor once lost."""
        return not self._draining and not self.lost.is_set() and not self._ended.is_set()

    @property
    def beat_age(self) -> timedelta | None:
        """How long ago the database answered a heartbeat; None before the first."""
        if self._view is None:
            return None
        return timedelta(seconds=monotonic() - self._view.received)

    @property
    def lag(self) -> timedelta:
        """How late the event loop answers, at worst, of late."""
        return timedelta() if self._heartbeat is None else self._heartbeat.lag

    @property
    def healthy(self) -> bool:
        """Whether heartbeats get through: peers have no reason to doubt this runner."""
        age, heartbeat = self.beat_age, self._heartbeat
        if heartbeat is None or age is None or self._ended.is_set():
            return False
        return not self.lost.is_set() and not heartbeat.unreachable and age < self._ttl

    def watch(self, watcher: Callable[[View], None]) -> None:
        """Call back on the host loop with every view from now on."""
        self._watchers.append(watcher)

    def refresh(self) -> None:
        """Ask for a view now; it comes with a heartbeat's round trip."""
        if self._heartbeat is not None:
            self._measure(self._heartbeat)
            self._heartbeat.refresh()

    def announce(self, types: Mapping[str, str]) -> None:
        """Say in the register that these types are served from now on."""
        self._runner = replace(self._runner, types=types)
        if self._heartbeat is not None:
            self._heartbeat.announce(self._runner)

    async def drain(self) -> None:
        """Take no shards any more, and return once the register says so, however long the database
        takes. Shards that are owned stay until they are released."""
        self._draining = True
        if self._heartbeat is not None:
            self._heartbeat.drain()
            await self._drained.wait()
            self._ring_topology()

    async def __aenter__(self) -> Self:
        host = asyncio.get_running_loop()
        self._heartbeat = Heartbeat(
            runner=self._runner,
            open_registry=self._open_registry,
            watchdog=Watchdog(
                runner=self._runner.id,
                host=host,
                thread=threading.get_ident(),
                warn_after=self._warn_after,
                limit=self._block_limit,
            ),
            host=host,
            tell=self._hear,
            interval=self._interval,
            ttl=self._ttl,
        )
        self._heartbeat.start()
        try:
            await self._joined.wait()
            if self._failure is not None:
                raise self._failure
        except BaseException:
            await self._end(self._heartbeat)
            raise
        await self._group.__aenter__()
        for tenant in self._tenants:
            self._group.create_task(self._keep_machine(tenant))
        self._ring_topology()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        heartbeat = self._heartbeat
        if heartbeat is None:
            return
        try:
            await self._end(heartbeat)
        finally:
            await self._group.__aexit__(None, None, None)
            self._ring_topology()

    async def _end(self, heartbeat: Heartbeat) -> None:
        heartbeat.leave()
        await self._ended.wait()
        heartbeat.join()

    def _hear(self, news: News) -> None:
        """Called on the host loop."""
        match news:
            case View():
                self._view = news
                if self._heartbeat is not None:
                    self._measure(self._heartbeat)
                self._joined.set()
                self._viewed.set()
                for watcher in self._watchers:
                    watcher(news)
            case Drained():
                self._drained.set()
            case TookOver(runner):
                logger.info(
                    "the sessions of a dead runner have ended",
                    extra={"runner": str(self.id), "peer": str(runner)},
                )
                self._ring_topology()
            case DeclaredDead():
                logger.error(
                    "a peer has declared this runner dead; it drops everything",
                    extra={"runner": str(self.id)},
                )
                self._lose()
            case Ended(error):
                self._hear_the_end(error)
            case _:
                assert_never(news)

    def _measure(self, heartbeat: Heartbeat) -> None:
        """What the next heartbeat says is in hand here: it has no look at the host's objects."""
        if self._load is not None:
            heartbeat.load = self._load()

    def _hear_the_end(self, error: BaseException | None) -> None:
        self._failure = error
        self._ended.set()
        self._drained.set()
        self._viewed.set()
        if error is not None and self._joined.is_set():
            logger.critical(
                "the heartbeat's thread broke down; this incarnation ends",
                exc_info=error,
                extra={"runner": str(self.id)},
            )
            self._lose()
        self._joined.set()

    def _lose(self) -> None:
        if self.lost.is_set():
            return
        self.lost.set()
        self._drained.set()
        if self._declared_dead is not None:
            self._declared_dead()

    async def _keep_machine(self, tenant: MachineTenant) -> None:
        failing = False
        while not self._ended.is_set():
            try:
                await tenant.renew()
                failing = False
            except Exception as error:
                if not failing:
                    logger.warning(
                        "the lease of the machine id could not be prolonged yet",
                        exc_info=error,
                        extra={"runner": str(self.id)},
                    )
                failing = True
            if not self._ended.is_set():  # the end may have come meanwhile: no view follows it
                self._viewed.clear()
                await self._viewed.wait()
