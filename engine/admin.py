"""Look at executions from outside: what they are, what they did, and why they do not go on.

Works on stored rows alone, so that it needs neither the workflows' code nor a runner. Used by the
client and by the CLI.
"""

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Final

from engine.core.errors import NotFound
from engine.core.ids import Snowflake
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.reply import Defect, Exit, Failure, ReplyKind, Success, decode_exit
from engine.core.status import Status
from engine.outcome import ExecutionInfo, JournalEvent
from engine.storage.protocol import ExecutionFilter, Storage, StoredExecution

_PAGE: Final = 200


async def find(storage: Storage, workflow: str, execution_id: str) -> StoredExecution:
    """The execution, or ``NotFound``."""
    found = await storage.find(workflow, execution_id)
    if found is None:
        raise NotFound(
            f"there is no execution {workflow}/{execution_id}; 'outlast ls' lists those there are"
        )
    return found


async def describe(storage: Storage, execution: StoredExecution) -> ExecutionInfo:
    """Everything about one execution, its ``why``, result and error included."""
    info = summary(execution)
    if execution.status.finished:
        return await _with_exit(storage, info)
    rows = await storage.history(execution.request_id)
    journal = [row for row in rows if row.run == execution.run]
    waiting = await storage.waiting_rows(execution.request_id)
    return replace(
        info,
        attempts=max((row.attempt for row in journal), default=0),
        why=_why(execution, journal, waiting, now=max((row.at for row in journal), default=None)),
    )


async def executions(
    storage: Storage, filter: ExecutionFilter, *, limit: int | None = None
) -> AsyncIterator[ExecutionInfo]:
    """Executions that match, youngest first, read page by page."""
    left, wanted = limit, filter
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        page = await storage.executions(wanted, limit=size)
        for execution in page:
            yield summary(execution)
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
    """A payload for people: decoded JSON, or the bytes where they are none."""
    if not payload:
        return None
    try:
        return json.loads(payload)
    except (ValueError, RecursionError):
        return payload


def summary(execution: StoredExecution) -> ExecutionInfo:
    """What the execution's own row says."""
    attributes = readable(execution.attributes or b"")
    return ExecutionInfo(
        workflow=execution.workflow,
        id=execution.execution_id,
        request_id=execution.request_id,
        status=execution.status,
        version=execution.version,
        run=execution.run,
        created_at=execution.created_at,
        started_at=execution.started_at,
        finished_at=execution.finished_at,
        wake_at=execution.wake_at if execution.status is Status.SUSPENDED else None,
        parent=execution.parent,
        runner=execution.runner,
        shard=execution.shard,
        why=_why(execution, (), 0, now=None),
        attributes=attributes if isinstance(attributes, dict) else {},  # pyright: ignore[reportUnknownArgumentType]
    )


async def exit_of(storage: Storage, request_id: Snowflake) -> Exit | None:
    """How a request ended, or None when it has not."""
    for reply in await storage.replies([request_id]):
        if reply.kind is not ReplyKind.CHUNK:
            return decode_exit(reply.kind, reply.payload)
    return None


async def _with_exit(storage: Storage, info: ExecutionInfo) -> ExecutionInfo:
    match await exit_of(storage, info.request_id):
        case None:
            return info
        case Success(value):
            return replace(info, result=readable(value), why="it succeeded")
        case Failure(error) | Defect(error):
            return replace(info, error=error, why=f"it failed: {error}")
        case ended:
            because = f": {ended.reason}" if ended.reason else ""
            return replace(info, why=f"it was {info.status}{because}")


def _why(
    execution: StoredExecution,
    journal: Sequence[JournalRow],
    waiting: int,
    *,
    now: datetime | None,
) -> str:
    owner = f"runner {execution.runner}" if execution.runner else None
    match execution.status:
        case Status.SCHEDULED if owner is None:
            return (
                f"it waits for a runner: nobody owns shard {execution.shard};"
                " start one with 'outlast run'"
            )
        case Status.SCHEDULED:
            return f"it is about to be run by {owner}, unless its start lies in the future"
        case Status.SUSPENDED:
            since = f", since {now.isoformat(timespec='seconds')}" if now else ""
            return (execution.waiting or "it waits for something outside") + since
        case Status.BLOCKED:
            return f"it is blocked: {execution.waiting}"
        case Status.RUNNING if owner is None:
            return (
                f"it was running, but nobody owns shard {execution.shard} now;"
                " it goes on as soon as a runner does"
            )
        case Status.RUNNING:
            return f"it is running on {owner}{_last(journal)}{_queued(waiting)}"
        case _:
            return (
                f"it {execution.status}"
                if execution.status is not Status.PAUSED
                else "it is paused"
            )


def _last(journal: Sequence[JournalRow]) -> str:
    if not journal:
        return ""
    row = journal[-1]
    if row.kind is JournalKind.ATTEMPT and row.due_at is not None:
        error = readable(row.payload)
        said = f"{error['type']}: {error['message']}" if isinstance(error, dict) else "an error"
        return (
            f"; attempt {row.attempt} of step {row.name} failed with {said},"
            f" the next is due {row.due_at.isoformat(timespec='seconds')}"
        )
    if row.kind is JournalKind.CALL:
        return f"; it waits for the reply of {row.name}"
    done = "ended" if row.outcome is Outcome.OK else row.outcome.name.lower()
    at = row.at.isoformat(timespec="seconds")
    return f"; last, {row.kind.name.lower()} {row.name} {done} at {at}"


def _queued(waiting: int) -> str:
    return f"; {waiting} messages wait for it" if waiting > 1 else ""
