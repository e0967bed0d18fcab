"""Which shards this runner ought to own, and the steps from there to owning them.

Follows the views of ``membership`` through ``assignment``; moves shards through a ``ShardHost``
(``delivery``), whose locks decide: this loop only ever asks.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from datetime import timedelta
from types import TracebackType
from typing import Protocol, Self

from engine.cluster.assignment import Candidate, assign
from engine.cluster.backoff import Backoff
from engine.cluster.view import Electorate, View
from engine.core.clock import monotonic
from engine.core.ids import RunnerId, ShardId
from engine.storage.lock_holder import LockHolder

logger: logging.Logger = logging.getLogger(__name__)

Ground = tuple[Electorate, frozenset[RunnerId]]
"""All that a share depends on."""


class ShardHost(Protocol):
    """Who serves the shards: holds their locks, reads their inboxes, runs their entities."""

    def owned(self) -> frozenset[ShardId]:
        """The shards whose locks are held here now, also while they are being released."""
        ...

    async def acquire(self, shards: Collection[ShardId]) -> frozenset[ShardId]:
        """Take those that are free: lock, bump the epoch, read the inbox; which they were."""
        ...

    async def release(self, shards: Collection[ShardId]) -> None:
        """Stop intake, drain, flush, unlock. Shards not owned (any more) are passed over."""
        ...

    def keep(self, shards: Collection[ShardId]) -> frozenset[ShardId]:
        """Give up releasing these and serve them on; those for which it is too late."""
        ...


class Views(Protocol):
    """What this loop needs of ``Membership``."""

    @property
    def view(self) -> View | None: ...
    @property
    def accepting(self) -> bool: ...
    def watch(self, watcher: Callable[[View], None]) -> None: ...
    def refresh(self) -> None: ...


class Ownership:
    """Brings the owned shards to the wanted ones: its share of each group, by the latest view.

    A shard is acquired as soon as it is wanted, and asked for again while somebody else holds its
    lock: at once when topology rings, else after ``retry`` doubling up to ``poll``. A shard is
    released when two views, one after the other, assign alike and neither gives it to this runner.
    A release may take as long as the shard's work; one that is wanted again meanwhile is kept.
    While ``views.accepting`` is false nothing moves. Leaving the context releases all that
    ``host`` still owns.

    ``holders`` says which sessions have locks and are no live runner's; the log tells of those that
    keep a wanted shard for longer than ``poll``.

    The shards of a silent runner are wanted by those who would inherit them, long before it may be
    declared dead: a killed process's locks are free at once, and a slow one's are held.
    """

    def __init__(
        self,
        *,
        host: ShardHost,
        views: Views,
        groups: Sequence[str],
        shards_in: Callable[[str], int],
        ring_topology: Callable[[], None],
        holders: Callable[[], Awaitable[Sequence[LockHolder]]],
        retry: timedelta = timedelta(milliseconds=50),
        poll: timedelta = timedelta(seconds=5),
    ) -> None:
        self._host = host
        self._views = views
        self._share = _Share(groups=groups, shards_in=shards_in)
        self._ring_topology = ring_topology
        self._holders = holders
        self._patience = poll.total_seconds()
        self._missing_since: float | None = None
        self._blamed: set[int | None] = set()
        self._acquiring = Backoff(initial=retry, maximum=poll)
        self._handing_over = Backoff(initial=retry, maximum=poll)
        self._group = asyncio.TaskGroup()
        self._wake = asyncio.Event()
        self._stopping = False
        self._failing = False
        self._ground: Ground | None = None
        self._settled = False
        self._moving: dict[ShardId, int] = {}
        self._half_released: frozenset[ShardId] = frozenset()
        self._handovers = itertools.count()

    @property
    def wanted(self) -> frozenset[ShardId]:
        """What the latest view gives to this runner."""
        return self._share.shards

    def poke(self) -> None:
        """Look again now: shards were lost with their lane, or may have become free."""
        self._acquiring.reset()
        self._wake.set()

    def topology_rung(self) -> None:
        """Runners came or went, or shards were released: look again, and get a newer view."""
        self._views.refresh()
        self.poke()

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._views.watch(self._viewed)
        if self._views.view is not None:
            self._viewed(self._views.view)
        self._group.create_task(self._follow())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stopping = True
        self._wake.set()
        await self._group.__aexit__(None, None, None)

    def _viewed(self, view: View) -> None:
        ground = view.electorate, view.silent
        self._settled = ground == self._ground
        self._ground = ground
        self._wake.set()

    async def _follow(self) -> None:
        while not self._stopping:
            delay: float | None
            try:
                delay = await self._reconcile()
                self._failing = False
            except Exception as error:
                if not self._failing:
                    logger.warning("shards cannot be moved now; trying again", exc_info=error)
                self._failing = True
                self._acquiring.failed()
                delay = self._acquiring.wait
            with suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            self._wake.clear()
        await self._hand_over(self._host.owned() - self._moving.keys())

    async def _reconcile(self) -> float | None:
        """One step towards the wanted shards; seconds until the next, None when nothing is open."""
        view = self._views.view
        if view is None or not self._views.accepting or not view.serving:
            return None
        if self._share.follow(view):
            self._acquiring.reset()
        delays = [self._give_away(self._share.shards), await self._take(self._share.shards)]
        return min((delay for delay in delays if delay is not None), default=None)

    def _give_away(self, wanted: frozenset[ShardId]) -> float | None:
        regretted = wanted & self._moving.keys()
        for shard in regretted - self._host.keep(regretted):
            del self._moving[shard]
        owned = self._host.owned()
        self._half_released &= owned  # what was lost meanwhile is begun anew, if it is wanted
        # One whose release has failed may serve nobody: it goes, also when it is wanted again.
        surplus = (owned - wanted | owned & self._half_released) - self._moving.keys()
        if not surplus:
            return None
        if not self._settled:
            self._views.refresh()
            return None
        if self._handing_over.wait > 0:
            return self._handing_over.wait
        # In a task of its own: a shard is given away when its running steps have ended, and others
        # are to be acquired meanwhile.
        self._group.create_task(self._hand_over(surplus))
        return None

    async def _take(self, wanted: frozenset[ShardId]) -> float | None:
        missing = wanted - self._host.owned() - self._moving.keys()
        if not missing:
            self._acquiring.reset()
            self._missing_since = None
            self._blamed.clear()
            return None
        if self._acquiring.wait > 0:
            return self._acquiring.wait
        # Before the statement, so that a ring that comes during it is not forgotten.
        self._acquiring.failed()
        got = await self._host.acquire(missing)
        if got:
            logger.info("acquired shards", extra={"acquired": len(got), "asked": len(missing)})
        if not missing - got:
            return None
        await self._tell_who_holds(missing - got)
        return self._acquiring.wait

    async def _tell_who_holds(self, missing: frozenset[ShardId]) -> None:
        """In the log, each session once, when shards are missed for longer than peers take."""
        if self._missing_since is None:
            self._missing_since = monotonic()
        if monotonic() - self._missing_since < self._patience:
            return
        for holder in await self._holders():
            if holder.pid not in self._blamed and missing.intersection(holder.shards):
                self._blamed.add(holder.pid)
                logger.error(
                    "shards cannot be acquired: %s is no live runner and holds the lock of %s; end"
                    " it, %s",
                    holder,
                    holder.named,
                    holder.fix,
                )

    def _hand_over(self, shards: frozenset[ShardId]) -> Coroutine[None, None, None]:
        """Release shards, which are moving from this call on."""
        number = next(self._handovers)
        self._moving |= dict.fromkeys(shards, number)
        return self._release(shards, number)

    async def _release(self, shards: frozenset[ShardId], number: int) -> None:
        if not shards:
            return
        try:
            await self._host.release(shards)
            logger.info("released shards", extra={"released": len(shards)})
            self._handing_over.reset()
            self._half_released -= shards
        except Exception as error:
            logger.warning("shards could not be released", exc_info=error)
            self._handing_over.failed()
            self._half_released |= shards
        finally:
            for shard in shards:
                if self._moving.get(shard) == number:  # else it was kept, and may move again
                    del self._moving[shard]
            self._ring_topology()
            self._wake.set()


class _Share:
    """One runner's share of every group it serves, assigned anew when the ground changes."""

    def __init__(self, *, groups: Sequence[str], shards_in: Callable[[str], int]) -> None:
        self._groups = groups
        self._shards_in = shards_in
        self._ground: Ground | None = None
        self.shards: frozenset[ShardId] = frozenset()

    def follow(self, view: View) -> bool:
        """Take over a view; whether the share is another now."""
        ground = view.electorate, view.silent
        if ground == self._ground:
            return False
        before = self.shards
        self._ground = ground
        self.shards = frozenset[ShardId]().union(*(self._of(view, each) for each in self._groups))
        return self.shards != before

    def _of(self, view: View, group: str) -> set[ShardId]:
        candidates = [Candidate(id=row.id, weight=row.weight) for row in view.candidates(group)]
        shards = [ShardId(group, number) for number in range(1, self._shards_in(group) + 1)]
        owners = assign(shards, candidates)
        share = {shard for shard, owner in owners.items() if owner == view.me}
        orphans = {shard for shard, owner in owners.items() if owner in view.silent}
        if orphans:
            heirs = assign(shards, [each for each in candidates if each.id not in view.silent])
            share |= {shard for shard in orphans if heirs.get(shard) == view.me}
        return share
