"""Delete what has ended long ago, so that tables stay as small as what is kept.

Entered by ``runner``. Each workflow that is served here is pruned by the owner of one shard, and so
are the requests to a group's entities, so that one runner does it; two that do it at once are in
nobody's way. The terms are those of the workflow's own ``retention``, else the settings'.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final, Self

from engine.cluster.delivery import Delivery
from engine.core.clock import Clock
from engine.core.ids import Snowflake, shard_of
from engine.core.status import Status
from engine.storage.protocol import Storage
from engine.storage.retention import Pruned, RequestTerm, Term
from engine.workflow.definition import WorkflowDefinition

log: logging.Logger = logging.getLogger(__name__)

_BATCH: Final = 500
_RUNS: Final = 20
_REST = 0.02
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_ENDS = tuple(status for status in Status if status.finished)


class Pruner:
    """Prunes every ``interval``, in batches. ``retention`` holds for what succeeded, and for the
    runs that those which go on have left behind, ``retention_failed`` for what ended otherwise;
    None: for ever."""

    def __init__(
        self,
        *,
        storage: Storage,
        clock: Clock,
        delivery: Delivery,
        served: Callable[[], Collection[WorkflowDefinition]],
        interval: timedelta,
        retention: timedelta | None,
        retention_failed: timedelta | None,
    ) -> None:
        self._storage = storage
        self._clock = clock
        self._delivery = delivery
        self._served = served
        self._interval = interval
        self._retention = retention
        self._retention_failed = retention_failed
        self._group = asyncio.TaskGroup()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._task = self._group.create_task(self._run(), name="pruner")
        return self

    async def __aexit__(self, *exc: object) -> None:
        if self._task is not None:
            self._task.cancel()
        await self._group.__aexit__(None, None, None)

    async def _run(self) -> None:
        while True:
            await self._wait()
            try:
                await self._prune()
            except Exception as error:  # what is not pruned now is pruned later
                log.warning("cannot prune now", exc_info=error)

    async def _wait(self) -> None:
        due = asyncio.Event()
        when = self._clock.now() + self._interval * random.uniform(0.9, 1)
        alarm = self._clock.call_at(when, due.set, routine=True)
        try:
            await due.wait()
        finally:
            alarm.cancel()

    async def _prune(self) -> None:
        now, mine = self._clock.now(), [each for each in self._served() if self._is_mine(each)]
        terms = [
            Term(workflow=each.name, status=status, until=now - kept, after=_BEGINNING)
            for each in mine
            for status in _ENDS
            if (kept := self._kept(each, status)) is not None
        ]
        count = await self._prune_ended(terms)
        until = {
            each.name: now - kept
            for each in mine
            if (kept := self._kept(each, Status.SUCCEEDED)) is not None
        }
        runs = await self._prune_runs(until) if until else 0
        requests = await self._prune_requests(now)
        if count or runs or requests:
            log.info("pruned", extra={"executions": count, "runs": runs, "requests": requests})

    def _kept(self, definition: WorkflowDefinition, status: Status) -> timedelta | None:
        if status in definition.retention:
            return definition.retention[status]
        return self._retention if status is Status.SUCCEEDED else self._retention_failed

    def _is_mine(self, definition: WorkflowDefinition) -> bool:
        return self._owns(definition.group, definition.name)

    def _owns(self, group: str, what: str) -> bool:
        shard = shard_of(group, self._storage.shards_in(group), "prune", what)
        return shard in self._delivery.shards

    async def _prune_ended(self, terms: list[Term]) -> int:
        count = 0
        while terms:
            found = await self._storage.finished(terms, limit=_BATCH)
            ids = [id for rows in found for id, _ in rows]
            before = max(term.until for term in terms)
            for first in range(0, len(ids), _BATCH):
                batch = ids[first : first + _BATCH]
                if first:
                    await asyncio.sleep(_REST)
                count += len(await self._storage.prune(batch, before=before))
            # What could not go is passed over, so that it keeps nothing else.
            terms = [
                replace(term, after=rows[-1][1])
                for term, rows in zip(terms, found, strict=True)
                if len(rows) == _BATCH
            ]
            if terms:
                await asyncio.sleep(_REST)
        return count

    async def _prune_runs(self, until: dict[str, datetime]) -> int:
        return await self._in_parts(
            lambda last: self._storage.prune_runs(until, after=last, limit=_BATCH, runs=_RUNS)
        )

    async def _prune_requests(self, now: datetime) -> int:
        if self._retention is None and self._retention_failed is None:
            return 0
        until, failed_until = (
            _BEGINNING if kept is None else now - kept
            for kept in (self._retention, self._retention_failed)
        )
        count = 0
        for group in sorted({shard.group for shard in self._delivery.shards}):
            if self._owns(group, ""):
                term = RequestTerm(group=group, until=until, failed_until=failed_until)
                count += await self._in_parts(partial(self._prune_term, term))
        return count

    async def _prune_term(self, term: RequestTerm, last: Snowflake) -> Pruned:
        return await self._storage.prune_requests(term, after=last, limit=_BATCH)

    async def _in_parts(self, prune: Callable[[Snowflake], Awaitable[Pruned]]) -> int:
        """Prune behind one after the other, until there are no more to look at."""
        count, last = 0, Snowflake(0)
        while True:
            pruned = await prune(last)
            count += pruned.count
            if pruned.last is None:
                return count
            last = pruned.last
            await asyncio.sleep(_REST)
