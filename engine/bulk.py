"""Do one thing to all executions that match: interrupt, terminate, retry, pause, resume or prune.

Under ``client`` and the CLI. Each goes the way that a single one goes (``by_name.tell``,
``repair.retry``), so that a run that was stopped is simply repeated.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Final, Literal

from engine import admin, by_name, repair
from engine.core.clock import monotonic
from engine.core.codec import digest
from engine.core.envelope import dedup_key
from engine.core.errors import ConfigurationError, NotFound
from engine.core.outcome import ExecutionInfo
from engine.core.status import Status
from engine.storage.protocol import ExecutionFilter, Storage, StoredExecution
from engine.workflow.tags import INTERRUPT, PAUSE, RESUME, TERMINATE, encode_order

if TYPE_CHECKING:
    from engine.node import Node

Action = Literal["interrupt", "terminate", "retry", "pause", "resume"]

_UNFINISHED: Final = tuple(status for status in Status if not status.finished)
_STATUSES: dict[Action, Sequence[Status]] = {
    "interrupt": _UNFINISHED,
    "terminate": _UNFINISHED,
    "retry": (Status.FAILED, Status.BLOCKED, Status.INTERRUPTED, Status.TERMINATED),
    "pause": tuple(status for status in _UNFINISHED if status is not Status.PAUSED),
    "resume": (Status.PAUSED,),
}
_TAGS = {"interrupt": INTERRUPT, "terminate": TERMINATE, "pause": PAUSE, "resume": RESUME}
_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkResult:
    """What became of one execution, which is as it was found. ``done``: it was told so, and that
    is durable. Else ``problem`` says why not; it is empty in a dry run."""

    execution: ExecutionInfo
    done: bool
    problem: str = ""


async def act(
    node: "Node",
    action: Action,
    filter: ExecutionFilter,
    *,
    reason: str = "",
    rate: float | None = None,
    limit: int | None = None,
    dry_run: bool = False,
) -> AsyncIterator[BulkResult]:
    """See ``Client.bulk``."""
    _check_rate(rate)
    wanted = replace(filter, statuses=statuses_for(action, filter.statuses))
    began, count = monotonic(), 0
    size = _AT_ONCE if rate is None else max(1, min(_AT_ONCE, int(rate / 4)))
    while limit is None or count < limit:
        left = size if limit is None else min(size, limit - count)
        page = await node.storage.executions(wanted, limit=left)
        if dry_run:
            results = [BulkResult(execution=admin.summary(each), done=False) for each in page]
        else:
            results = await asyncio.gather(*(_one(node, action, each, reason) for each in page))
        for result in results:
            yield result
        if len(page) < left:
            return
        count += len(page)
        wanted = replace(wanted, after=page[-1].request_id)
        if rate is not None and not dry_run:
            await asyncio.sleep(pause_after(count, rate=rate, taken=monotonic() - began))


async def prune(
    storage: Storage,
    filter: ExecutionFilter,
    *,
    before: datetime,
    rate: float | None = None,
    limit: int | None = None,
    dry_run: bool = False,
) -> AsyncIterator[BulkResult]:
    """Delete executions that match and ended before a time, with all they were told and have sent.
    One that somebody has still to hear of stays, as its ``problem`` says."""
    _check_rate(rate)
    ends = [each for each in Status if each.finished and each in (filter.statuses or Status)]
    if not ends:
        raise ConfigurationError("prune is for what has ended: it deletes nothing that goes on")
    wanted = replace(filter, statuses=ends)
    began, count, more = monotonic(), 0, True
    while more and (limit is None or count < limit):
        page = await storage.executions(wanted, limit=_AT_ONCE)
        old = [each for each in page if each.finished_at and each.finished_at <= before]
        old = old if limit is None else old[: limit - count]
        ids = [each.request_id for each in old]
        gone = () if dry_run else await storage.prune(ids, before=before)
        for each in old:
            done = each.request_id in gone
            kept = "" if done or dry_run else "somebody has still to hear of it"
            yield BulkResult(execution=admin.summary(each), done=done, problem=kept)
        count, more = count + len(old), len(page) == _AT_ONCE
        if page:
            wanted = replace(wanted, after=page[-1].request_id)
        if rate is not None and not dry_run:
            await asyncio.sleep(pause_after(count, rate=rate, taken=monotonic() - began))


def statuses_for(action: Action, wanted: Sequence[Status]) -> Sequence[Status]:
    """Those of the wanted ones that the action has an effect on; without any, all it is for. Who
    retries what was ended on purpose has to say so."""
    fit = _STATUSES[action]
    if not wanted:
        return fit[:2] if action == "retry" else fit
    found = [status for status in wanted if status in fit]
    if not found:
        known, given = ", ".join(map(str, fit)), ", ".join(map(str, wanted))
        raise ConfigurationError(
            f"{action} has no effect on what is {given}: it is for what is {known}"
        )
    return found


def pause_after(count: int, *, rate: float, taken: float) -> float:
    """How many seconds to wait after ``count`` that took so long, to do ``rate`` a second."""
    return max(0.0, count / rate - taken)


def _check_rate(rate: float | None) -> None:
    if rate is not None and rate <= 0:
        raise ConfigurationError("rate must be more than 0: so many executions a second")


async def _one(node: "Node", action: Action, execution: StoredExecution, reason: str) -> BulkResult:
    info = admin.summary(execution)
    try:
        if action == "retry":
            await repair.retry(node, execution)
            done = True
        else:
            done = await by_name.tell(node, _message(node, action, execution, reason))
    except (ConfigurationError, NotFound) as error:
        return BulkResult(execution=info, done=False, problem=str(error))
    late = "" if done else "it has ended meanwhile, or was told before"
    return BulkResult(execution=info, done=done, problem=late)


def _message(
    node: "Node", action: Action, execution: StoredExecution, reason: str
) -> by_name.Message:
    key = None
    if action == "interrupt":
        # A second one would cut the cleanup short that the first has asked for.
        once = f"{execution.request_id}/{execution.run}/{digest(reason.encode())}"
        key = dedup_key("interrupt", execution.workflow, once)
    return by_name.Message(
        workflow=execution.workflow,
        group=execution.shard.group,
        id=execution.execution_id,
        tag=_TAGS[action],
        payload=encode_order(reason, node.settings.author),
        key=key,
    )
