"""Look at executions from outside: what they are, what they did, and why they do not go on.

Works on stored rows alone, so that it needs neither the workflows' code nor a runner. Used by the
client and by the CLI.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

from engine.core.errors import ErrorDetails, NotFound
from engine.core.ids import RunnerId, Snowflake
from engine.core.journal import JournalKind, JournalRow
from engine.core.outcome import ExecutionInfo, JournalEvent
from engine.core.reply import (
    Defect,
    Exit,
    Failure,
    ReplyKind,
    Success,
    decode_error,
    decode_exit,
    encode_error,
)
from engine.core.seal import unreadable
from engine.core.status import Status
from engine.place import standing
from engine.storage.lock_holder import LockHolder
from engine.storage.pauses import Pause
from engine.storage.protocol import (
    ExecutionFilter,
    RunnerRow,
    Storage,
    StoredExecution,
    StoredReply,
)
from engine.why import Situation, why
from engine.workflow.repair import ABANDONED

_PAGE: Final = 200
_CALLS: Final = 3
"""So many of the requests that an execution waits for are spoken of."""


async def find(storage: Storage, workflow: str, execution_id: str) -> StoredExecution:
    """The execution, or ``NotFound``."""
    found = await storage.find(workflow, execution_id)
    if found is None:
        raise NotFound(
            f"there is no execution {workflow}/{execution_id}; 'outlast ls' lists those there are"
        )
    return found


async def describe(
    storage: Storage, execution: StoredExecution, *, silent_before: datetime | None = None
) -> ExecutionInfo:
    """Everything about one execution, its ``why``, result and error included. ``silent_before``:
    a runner without a later sign of life counts as silent."""
    if execution.status.finished:
        return _ended(summary(execution), await exit_of(storage, execution.request_id))
    rows = await storage.history(execution.request_id)
    journal = [row for row in rows if row.run == execution.run]
    around = _Around(
        runners={row.id: row for row in await storage.runners()},
        holders=await storage.lock_holders(),
        pauses=await storage.pauses(),
        silent_before=silent_before,
    )
    request = await storage.request(execution.request_id)
    situation = replace(
        around.situation(execution, None if request is None else request.deliver_at),
        journal=journal,
        heartbeats=await storage.heartbeats([execution.request_id]),
        queued=await storage.waiting_rows(execution.request_id),
        calls=await _calls(storage, journal, around),
    )
    attempts = max((row.attempt for row in journal), default=0)
    return replace(_summary(situation), attempts=attempts)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Around:
    """What is around an execution and is alike for all of them."""

    runners: Mapping[RunnerId, RunnerRow]
    pauses: Mapping[str, Pause]
    silent_before: datetime | None
    holders: Sequence[LockHolder] = ()

    def situation(self, execution: StoredExecution, starts_at: datetime | None) -> Situation:
        """As far as it is known without its journal."""
        runner, shard = execution.runner, execution.shard
        return Situation(
            execution=execution,
            owner=None if runner is None else self.runners.get(runner),
            starts_at=starts_at,
            silent_before=self.silent_before,
            pause=self.pauses.get(execution.workflow),
            holder=next((each for each in self.holders if shard in each.shards), None),
        )


async def _calls(storage: Storage, journal: Sequence[JournalRow], around: _Around) -> list[str]:
    """Where the first of the requests stand that it has sent and waits for the reply of."""
    ended = {(row.name, row.ordinal) for row in journal if row.kind is JournalKind.STEP}
    calls = [
        row.source
        for row in journal
        if row.kind is JournalKind.CALL
        and row.source is not None
        and row.payload != ABANDONED
        and (row.name, row.ordinal) not in ended
    ]
    found = [
        await standing(storage, each) or await _child(storage, each, around)
        for each in calls[:_CALLS]
    ]
    return [sentence for sentence in found if sentence is not None]


async def _child(storage: Storage, start: Snowflake, around: _Around) -> str | None:
    """Why the child that this request has started does not go on; None if it started none, since
    there was one already, or if that has ended."""
    request = await storage.request(start)
    if request is None:
        return None
    child = await storage.find(request.address.entity_type, request.address.entity_id)
    if child is None or child.request_id != start or child.status.finished:
        return None
    situation = around.situation(child, request.deliver_at)
    return f"{child.workflow}/{child.execution_id}: {why(situation)}"


async def executions(
    storage: Storage,
    filter: ExecutionFilter,
    *,
    limit: int | None = None,
    silent_before: datetime | None = None,
) -> AsyncIterator[ExecutionInfo]:
    """Executions that match, youngest first, read page by page. ``silent_before`` as for
    ``describe``."""
    left, wanted = limit, filter
    around = _Around(
        runners={row.id: row for row in await storage.runners()},
        pauses=await storage.pauses(),
        silent_before=silent_before,
    )
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        page = await storage.executions(wanted, limit=size)
        scheduled = [each.request_id for each in page if each.status is Status.SCHEDULED]
        starts: Mapping[Snowflake, datetime] = {}
        if scheduled:
            starts = await storage.start_times(scheduled)
        infos = [_summary(around.situation(each, starts.get(each.request_id))) for each in page]
        for info in await _with_exits(storage, infos):
            yield info
        if len(page) < size:
            return
        wanted = replace(wanted, after=page[-1].request_id)
        left = None if left is None else left - len(page)


async def history(storage: Storage, execution: Snowflake) -> list[JournalEvent]:
    """The journal of an execution, decoded, run by run and in order."""
    return [event(row) for row in await storage.history(execution)]


def event(row: JournalRow) -> JournalEvent:
    """A journal row with its payload decoded."""
    return JournalEvent(
        run=row.run,
        position=row.position,
        kind=row.kind,
        name=row.name,
        ordinal=row.ordinal,
        attempt=row.attempt,
        outcome=row.outcome,
        at=row.at,
        started_at=row.started_at,
        due_at=row.due_at,
        source=row.source,
        payload=readable(row.payload),
    )


def readable(payload: bytes) -> object:
    """A payload for people: decoded JSON, or the bytes where they are none; of one that cannot be
    decoded here, that it is so."""
    if not payload:
        return None
    if (told := unreadable(payload)) is not None:
        return f"({told})"
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return payload


def summary(execution: StoredExecution) -> ExecutionInfo:
    """What the execution's own row says."""
    return _summary(Situation(execution=execution))


def _summary(situation: Situation) -> ExecutionInfo:
    execution = situation.execution
    attributes = readable(execution.attributes or b"")
    wakes = {Status.SUSPENDED: execution.wake_at, Status.SCHEDULED: situation.starts_at}
    return ExecutionInfo(
        workflow=execution.workflow,
        id=execution.execution_id,
        request_id=execution.request_id,
        status=execution.status,
        version=execution.version or None,
        run=execution.run,
        created_at=execution.created_at,
        started_at=execution.started_at,
        finished_at=execution.finished_at,
        wake_at=wakes.get(execution.status),
        parent=execution.parent,
        runner=execution.runner,
        shard=execution.shard,
        why=why(situation),
        attributes=attributes if isinstance(attributes, dict) else {},  # pyright: ignore[reportUnknownArgumentType]
    )


async def exit_of(storage: Storage, request_id: Snowflake) -> Exit | None:
    """How a request ended, or None when it has not."""
    for reply in await storage.replies([request_id]):
        if reply.kind is not ReplyKind.CHUNK:
            return readable_exit(reply)
    return None


def readable_exit(reply: StoredReply) -> Exit:
    """An exit for people; of an error or reason that cannot be decoded here, that it is so."""
    told = unreadable(reply.payload)
    match reply.kind:
        case _ if told is None:
            return decode_exit(reply.kind, reply.payload)
        case ReplyKind.FAILURE | ReplyKind.DEFECT:
            error = encode_error(readable_error(reply.payload))
            return decode_exit(reply.kind, error)
        case ReplyKind.INTERRUPTED | ReplyKind.TERMINATED:
            return decode_exit(reply.kind, json.dumps(f"({told})").encode())
        case _:
            return decode_exit(reply.kind, reply.payload)


def readable_error(payload: bytes) -> ErrorDetails:
    """An error for people; of one that cannot be decoded here, that it is so."""
    told = unreadable(payload)
    return decode_error(payload) if told is None else ErrorDetails("Unreadable", told)


async def _with_exits(storage: Storage, infos: Sequence[ExecutionInfo]) -> list[ExecutionInfo]:
    """A page with the errors and reasons of those that did not succeed, by one query."""
    ended = [info for info in infos if info.status.finished and info.status is not Status.SUCCEEDED]
    replies = await storage.replies([info.request_id for info in ended]) if ended else ()
    exits = {
        reply.request_id: readable_exit(reply)
        for reply in replies
        if reply.kind is not ReplyKind.CHUNK
    }
    return [_ended(info, exits.get(info.request_id)) for info in infos]


def _ended(info: ExecutionInfo, exit: Exit | None) -> ExecutionInfo:
    match exit:
        case None:
            return info
        case Success(value):
            return replace(info, result=readable(value), why="it succeeded")
        case Failure(error) | Defect(error):
            return replace(info, error=error, why=f"it failed: {error}")
        case ended:
            because = f": {ended.reason}" if ended.reason else ""
            return replace(info, why=f"it was {info.status}{because}")
