"""``Singleton``: something that runs on exactly one live runner of its group.

It is bound to a shard like an entity: who owns that shard runs it. ``cluster.delivery`` says when
the shard comes and goes.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Coroutine
from datetime import timedelta
from types import new_class
from typing import Any, ClassVar

from engine.cluster.shard import OwnedShard
from engine.core.clock import monotonic
from engine.core.errors import ConfigurationError
from engine.core.ids import ShardId, shard_of
from engine.core.names import definition_name, refuse_reserved

log = logging.getLogger(__name__)

_BACKOFF = timedelta(milliseconds=100)
_BACKOFF_LIMIT = timedelta(minutes=1)
_HEALTHY_AFTER = timedelta(minutes=1)


class SingletonContext:
    """What a running singleton knows: when ``cancelled`` is set it has the grace period to end by
    itself, then it is cancelled. ``failures`` counts its consecutive failures so far."""

    __slots__ = ("cancelled", "failures")

    def __init__(self, *, failures: int = 0) -> None:
        self.cancelled = asyncio.Event()
        self.failures = failures


Run = Callable[[SingletonContext], Awaitable[None]]


class Singleton:
    """Base class of singletons: ``run`` runs on one live runner of ``shard_group`` at a time.

    It is started when the runner takes its shard, started again with back-off when it fails, and
    handed over when the runner stops or dies. One that returns is done until its shard moves.
    """

    name: ClassVar[str]
    shard_group: ClassVar[str] = "default"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_reserved(cls, Singleton, reserved=frozenset(), options=_OPTIONS)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        definition_name(cls.name, what=f"singleton {cls.__qualname__}")

    async def run(self, context: SingletonContext) -> None:
        """Its work. Override it; watch ``context.cancelled`` to end gracefully."""
        raise NotImplementedError(f"{type(self).__name__} does not define run()")


_OPTIONS = frozenset({"name", "shard_group"})


def singleton_of(name: str, run: Run, shard_group: str) -> Singleton:
    """A singleton whose work is a function."""

    class Function(Singleton):
        async def run(self, context: SingletonContext) -> None:
            await run(context)

    options = {"name": name, "shard_group": shard_group}
    made: type[Singleton] = new_class(name, (Function,), exec_body=lambda b: b.update(options))
    return made()


def singleton_shard(group: str, shards: int, name: str) -> ShardId:
    """The shard whose owner runs the singleton."""
    return shard_of(group, shards, "singleton", name)


class SingletonHost:
    """Runs the singletons whose shards are owned here (a ``ShardFollower`` of delivery)."""

    def __init__(
        self,
        *,
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        end: Callable[[Collection[asyncio.Task[None]]], Coroutine[Any, Any, None]],
    ) -> None:
        self._spawn = spawn
        self._end = end
        self._runs: dict[str, tuple[ShardId, Run]] = {}
        self._shards: dict[ShardId, OwnedShard] = {}
        self._running: dict[str, _Running] = {}
        self._unended: dict[str, set[asyncio.Task[None]]] = {}

    def register(self, name: str, shard: ShardId, run: Run) -> None:
        """Serve a singleton, at once if its shard is owned already."""
        if name in self._runs:
            raise ConfigurationError(f"two singletons are registered as {name!r}; rename one")
        self._runs[name] = (shard, run)
        owned = self._shards.get(shard)
        if owned is not None and owned.accepting:  # what is given away is the next owner's
            self._start(name, owned, run)

    def acquired(self, shard: OwnedShard) -> None:
        self._shards[shard.id] = shard
        for name, (at, run) in self._runs.items():
            if at == shard.id:
                self._start(name, shard, run)

    def drop(self, shard: OwnedShard) -> None:
        tasks = {running.stop() for running in self._on(shard)}
        for task in tasks:
            task.cancel()
        if tasks:
            self._spawn(self._end(tasks))
        self._forget(shard)

    async def drain(self, shard: OwnedShard, grace: timedelta) -> None:
        # INVARIANT one-singleton: the lock is given up only after it has stopped here, its runs of
        # earlier epochs too.
        tasks = {task for each in self._on(shard) for task in (each.stop(), *self._all(each.name))}
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=grace.total_seconds())
            await self._end(late)
        self._forget(shard)

    def _on(self, shard: OwnedShard) -> list["_Running"]:
        return [running for running in self._running.values() if running.shard is shard]

    def _forget(self, shard: OwnedShard) -> None:
        if self._shards.get(shard.id) is shard:
            del self._shards[shard.id]
        for name in [name for name, each in self._running.items() if each.shard is shard]:
            del self._running[name]

    def _start(self, name: str, shard: OwnedShard, run: Run) -> None:
        running = _Running(name, shard)
        self._running[name] = running
        # INVARIANT one-singleton: after all its runs of earlier epochs in this process, which may
        # not have heeded their cancellation yet. One that waits for others may end before they do.
        running.task = self._spawn(running.run(run, after=frozenset(self._all(name))))
        self._all(name).add(running.task)
        running.task.add_done_callback(self._all(name).discard)

    def _all(self, name: str) -> set[asyncio.Task[None]]:
        """Its runs in this process that have not ended, whatever their epoch."""
        return self._unended.setdefault(name, set())


class _Running:
    """A singleton while its shard is owned here."""

    __slots__ = ("context", "name", "shard", "stopping", "task")
    task: asyncio.Task[None]

    def __init__(self, name: str, shard: OwnedShard) -> None:
        self.name = name
        self.shard = shard
        self.stopping = False
        self.context = SingletonContext()

    def stop(self) -> asyncio.Task[None]:
        """Ask it to end by itself, and not to begin again; gives its task."""
        self.stopping = True
        self.context.cancelled.set()
        return self.task

    async def run(self, run: Run, *, after: Collection[asyncio.Task[None]]) -> None:
        """Run it when the others have ended, again with back-off for as long as it fails one time
        after the other."""
        if after:
            await asyncio.wait(after)
        failures = 0
        while not self.stopping:
            began = monotonic()
            try:
                await run(self.context)
            except (Exception, asyncio.CancelledError) as error:
                if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                    raise
                if monotonic() - began >= _HEALTHY_AFTER.total_seconds():
                    failures = 0
                failures += 1
                log.exception(
                    "a singleton failed and is started again",
                    extra={"singleton": self.name, "failures": failures},
                )
            else:
                log.info("a singleton has ended", extra={"singleton": self.name})
                return
            self.context.failures = failures
            delay = min(_BACKOFF * 2 ** min(failures - 1, 20), _BACKOFF_LIMIT)
            pause = delay.total_seconds() * random.uniform(0.5, 1)
            try:
                async with asyncio.timeout(pause):
                    await self.context.cancelled.wait()
            except TimeoutError:
                continue


def _is_cancelled() -> bool:
    """Whether this task was told to end; else a ``CancelledError`` is of its code's own making."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
