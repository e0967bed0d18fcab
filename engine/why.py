"""Why an execution stands where it stands, in one sentence that also says what to do.

From ``admin``, which reads the rows; used by ``describe``, ``outlast ls``, ``show`` and ``why``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import assert_never

from engine.cluster.served import serves
from engine.core.errors import InvalidPayload
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.reply import decode_error
from engine.core.seal import unreadable
from engine.core.status import Status
from engine.storage.heartbeats import StepHeartbeat
from engine.storage.lock_holder import LockHolder
from engine.storage.pauses import Pause
from engine.storage.protocol import RunnerRow, StoredExecution
from engine.workflow.pause import in_words

_SHOWN = 80
_NOTHING = (
    "waits for no step, timer or deferred, so that nothing will wake it: interrupt it, and correct"
    " its code"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Situation:
    """An execution that has not ended, with as much of what is around it as was read.

    ``journal`` is None if it was not read. ``queued``: how many messages wait for it.
    ``starts_at``: not to begin before then.
    ``silent_before``: an owner without a later sign of life may be dead; None: not judged.
    ``pause``: what was last said of its workflow as a whole. ``holder``: who has the lock of its
    shard, if that is no live runner.
    ``calls``: where the messages and items stand that it waits for, a sentence for each.
    """

    execution: StoredExecution
    journal: Sequence[JournalRow] | None = None
    heartbeats: Sequence[StepHeartbeat] = ()
    queued: int = 0
    owner: RunnerRow | None = None
    starts_at: datetime | None = None
    silent_before: datetime | None = None
    pause: Pause | None = None
    holder: LockHolder | None = None
    calls: Sequence[str] = ()


def why(situation: Situation) -> str:
    """The sentence; times in it are ISO 8601."""
    execution = situation.execution
    if execution.status.finished:
        return f"it has ended: {execution.status}"
    if execution.status is Status.BLOCKED:
        return f"it is blocked: {execution.waiting}"
    if (pause := situation.pause) is not None and pause.paused:
        since = in_words(pause.reason, pause.by, pause.at)
        return (
            f"its workflow is paused {since}: 'outlast resume {execution.workflow}' lets it go on;"
            f" {_standing(situation)}"
        )
    if execution.status is Status.PAUSED and not _returns(execution):
        name = f"{execution.workflow}/{execution.execution_id}"
        return f"it is paused {execution.waiting}: 'outlast resume {name}' lets it go on"
    if (holder := situation.holder) is not None:
        return (
            f"nobody can own its shard {execution.shard}, since {holder} holds its lock and is no"
            f" live runner: end it, {holder.fix}"
        )
    if execution.runner is None:
        return (
            f"nobody owns its shard {execution.shard}: start a runner that serves"
            f" {execution.workflow} with 'outlast run'; {_standing(situation)}"
        )
    if not _served(situation):
        return (
            f"{_name(situation)} owns its shard {execution.shard} and does not serve"
            f" {_code(situation)}: let all runners of group {execution.shard.group} register it, or"
            f" give another app a schema of its own (OUTLAST_SCHEMA); {_standing(situation)}"
        )
    if (beat := _last_beat(situation)) is not None:
        return (
            f"{_name(situation)} owns its shard {execution.shard} and has given no sign of life"
            f" since {beat.isoformat(timespec='seconds')}: another runner takes over within seconds"
            f" if one is live, else start one with 'outlast run'; {_standing(situation)}"
        )
    return _standing(situation)


def _standing(situation: Situation) -> str:
    execution, starts_at = situation.execution, situation.starts_at
    match execution.status:
        case Status.SCHEDULED if starts_at is not None:
            return f"it is to start at {starts_at.isoformat(timespec='seconds')}"
        case Status.SCHEDULED if not _at_work(situation):
            return "no step of it has ended yet"
        case Status.SCHEDULED:
            # Its begin is stored with the end of its first step, not before.
            return f"{_name(situation)} has it: it begins, or its first step has not ended yet"
        case Status.SUSPENDED:
            at = situation.journal[-1].at if situation.journal else None
            since = f", since {at.isoformat(timespec='seconds')}" if at else ""
            failure = _failure(situation.journal)
            return f"it {execution.waiting or _NOTHING}{since}{failure}{_calls(situation)}"
        case Status.RUNNING:
            runs = f"runs on {_name(situation)}" if _at_work(situation) else "was running"
            last = f"{_last(situation.journal)}{_beat(situation.heartbeats)}"
            return f"it {runs}{last}{_calls(situation)}{_queued(situation.queued)}"
        case Status.PAUSED if _returns(execution):
            return "it goes on in a moment"
        case Status.PAUSED:
            return f"it is paused {execution.waiting}"
        case Status.BLOCKED | Status.SUCCEEDED | Status.FAILED:
            return f"it is {execution.status}"
        case Status.INTERRUPTED | Status.TERMINATED:
            return f"it was {execution.status}"
        case _:
            assert_never(execution.status)


def _returns(execution: StoredExecution) -> bool:
    """Whether it was paused with its whole workflow only, and goes on with that."""
    return execution.wake_at is not None


def _served(situation: Situation) -> bool:
    """Whether its owner, as far as is known, serves its workflow."""
    if situation.execution.runner is None:
        return False
    owner = situation.owner
    if owner is None or not owner.types:
        return True
    return serves(owner.types, situation.execution.workflow, situation.execution.version)


def _code(situation: Situation) -> str:
    """What its owner does not serve."""
    execution, owner = situation.execution, situation.owner
    if owner is None or execution.workflow not in owner.types:
        return execution.workflow
    return f"version {execution.version} of {execution.workflow}, which it is pinned to"


def _calls(situation: Situation) -> str:
    return "".join(f"; {call}" for call in situation.calls)


def _last_beat(situation: Situation) -> datetime | None:
    """When its owner gave its last sign of life, if that is too long ago."""
    beat = None if situation.owner is None else situation.owner.beat_at
    if beat is None or situation.silent_before is None or beat >= situation.silent_before:
        return None
    return beat


def _at_work(situation: Situation) -> bool:
    """Whether its owner, as far as is known, lives and serves its workflow."""
    return _served(situation) and _last_beat(situation) is None


def _name(situation: Situation) -> str:
    owner = situation.owner
    if owner is None:
        return f"runner {situation.execution.runner}"
    return f"runner {owner.host}:{owner.pid}"


def _last(journal: Sequence[JournalRow] | None) -> str:
    """What its journal ends with."""
    if journal is None:
        return ""
    if not journal:
        return "; no step has ended yet"
    row = journal[-1]
    if row.kind is JournalKind.ATTEMPT and row.due_at is not None:
        due = row.due_at.isoformat(timespec="seconds")
        return f"{_failure(journal)}, the next is due {due}"
    if row.kind is JournalKind.CALL:
        return f"; it waits for the reply of {row.name}"
    if row.kind is JournalKind.POSTPONED:
        return f"; it waits for the completion of step {row.name}"
    done = "ended" if row.outcome is Outcome.OK else row.outcome.name.lower().replace("_", " ")
    at = row.at.isoformat(timespec="seconds")
    return f"; last, {row.kind.name.lower()} {row.name} {done} at {at}"


def _beat(heartbeats: Sequence[StepHeartbeat]) -> str:
    """What its steps that run have last reported: the latest of it."""
    if not heartbeats:
        return ""
    last = max(heartbeats, key=lambda each: each.at)
    at = last.at.isoformat(timespec="seconds")
    details = (last.details or b"").decode(errors="replace")
    shown = details if len(details) <= _SHOWN else f"{details[:_SHOWN]}…"
    return f"; heartbeat of {last.name} at {at}" + (f": {shown}" if shown else "")


def _failure(journal: Sequence[JournalRow] | None) -> str:
    """The failed attempt that its journal ends with, if it does."""
    if not journal or journal[-1].kind is not JournalKind.ATTEMPT:
        return ""
    row = journal[-1]
    return f"; attempt {row.attempt} of step {row.name} failed with {_error(row)}"


def _error(row: JournalRow) -> str:
    try:
        return str(decode_error(row.payload))
    except InvalidPayload:
        return f"an error that is {unreadable(row.payload) or 'unreadable'}"


def _queued(queued: int) -> str:
    """One row is the one that a next owner finds it by."""
    if queued < 2:
        return ""
    return f"; {queued - 1} message{'s wait' if queued > 2 else ' waits'} for it"
