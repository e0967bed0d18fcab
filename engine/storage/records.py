"""Records of the database as protocol values: the way back from ``columns``."""

import json
from datetime import datetime
from typing import Any

import asyncpg

from engine.core.envelope import EnvelopeRequest, ReplyTo, Uninterruptible
from engine.core.ids import EntityAddress, RunnerId, ShardId
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.reply import ReplyKind
from engine.core.status import Status
from engine.storage.entities import DeadLetter, EntityRow, StoredState
from engine.storage.groups import Groups
from engine.storage.heartbeats import StepHeartbeat
from engine.storage.pauses import Pause
from engine.storage.places import Holder, Place
from engine.storage.protocol import RunnerLoad, RunnerRow, StoredExecution, StoredReply
from engine.storage.queues import Line, QueueCounts, QueueItem, QueueRow
from engine.storage.schedules import Fire, FireOutcome, ScheduleRow
from engine.storage.standings import PatchAnswer, Standing

_STATUS = {each.value: each for each in Status}
_UNINTERRUPTIBLE = {each.value: each for each in Uninterruptible}
_JOURNAL_KIND = {each.value: each for each in JournalKind}
_OUTCOME = {each.value: each for each in Outcome}
"""By their values: to call an enumeration takes ten times as long."""


def envelope_from(record: asyncpg.Record, groups: Groups) -> EnvelopeRequest:
    """The request of a record that has the columns of ``envelopes``."""
    headers, trace = _headers(record["headers"])
    reply_to = None
    if record["reply_execution"] is not None:
        reply_to = ReplyTo(
            execution=record["reply_execution"],
            shard=groups.shard(record["reply_group_id"], record["reply_shard"]),
        )
    return EnvelopeRequest(
        request_id=record["request_id"],
        address=_address(record, groups),
        tag=record["tag"],
        payload=record["payload"],
        headers=headers,
        trace=trace,
        uninterruptible=_UNINTERRUPTIBLE[record["uninterruptible"]],
        deliver_at=record["deliver_at"],
        key=record["key"],
        reply_to=reply_to,
    )


def execution_from(
    record: asyncpg.Record, shard: ShardId, runner: RunnerId | None, *, id: str = "request_id"
) -> StoredExecution:
    """The execution of a record that has the columns of ``executions``; ``id`` names its key."""
    attributes = record["attributes"]
    return StoredExecution(
        request_id=record[id],
        workflow=record["workflow"],
        execution_id=record["execution_id"],
        shard=shard,
        status=_STATUS[record["status"]],
        run=record["run"],
        version=record["version"],
        created_at=record["created_at"],
        started_at=record["started_at"],
        finished_at=record["finished_at"],
        wake_at=record["wake_at"],
        waiting=record["waiting"],
        parent=record["parent"],
        attributes=attributes.encode() if attributes is not None else None,
        runner=runner,
        error=record["error"],
        failures=record["failures"],
    )


def owned_execution_from(record: asyncpg.Record, groups: Groups) -> StoredExecution:
    """As ``execution_from``, for a record with its own shard and ``runner_id``."""
    shard = groups.shard(record["group_id"], record["shard"])
    return execution_from(record, shard, _owner(record))


def journal_from(record: asyncpg.Record) -> JournalRow:
    return JournalRow(
        execution=record["execution"],
        run=record["run"],
        position=record["position"],
        kind=_JOURNAL_KIND[record["kind"]],
        name=record["name"],
        ordinal=record["ordinal"],
        at=record["at"],
        attempt=record["attempt"],
        outcome=_OUTCOME[record["outcome"]],
        digest=record["digest"],
        started_at=record["started_at"],
        due_at=record["due_at"],
        source=record["source"],
        payload=record["payload"],
    )


def reply_from(record: asyncpg.Record) -> StoredReply:
    return StoredReply(
        request_id=record["request_id"],
        sequence=record["sequence"],
        kind=ReplyKind(record["kind"]),
        payload=record["payload"],
    )


def runner_from(record: asyncpg.Record) -> RunnerRow:
    return RunnerRow(
        id=record["id"],
        groups=tuple(record["groups"]),
        weight=record["weight"],
        host=record["host"],
        pid=record["pid"],
        version=record["version"],
        types=json.loads(record["types"]),
        machine=record["machine"],
        draining=record["draining"],
        load=_load(record["load"]),
        started_at=record["started_at"],
        beat_at=record["beat_at"],
        died_at=record["died_at"],
    )


def pause_from(record: asyncpg.Record | dict[str, Any]) -> Pause:
    return Pause(
        workflow=record["workflow"],
        paused=record["paused"],
        reason=record["reason"],
        by=record["author"],
        at=record["at"],
    )


def pauses_in(stored: str | None) -> dict[str, Pause]:
    """Those in a JSON array of such rows, by workflow."""
    rows: list[dict[str, Any]] = [] if stored is None else json.loads(stored)
    for row in rows:
        row["at"] = datetime.fromisoformat(row["at"])
    return {row["workflow"]: pause_from(row) for row in rows}


def state_from(record: asyncpg.Record, groups: Groups) -> StoredState:
    return StoredState(
        entity_type=record["entity_type"],
        entity_id=record["entity_id"],
        shard=groups.shard(record["group_id"], record["shard"]),
        version=record["version"],
        payload=record["payload"],
        saved_at=record["saved_at"],
    )


def entity_from(record: asyncpg.Record, groups: Groups) -> EntityRow:
    return EntityRow(
        entity_type=record["entity_type"],
        entity_id=record["entity_id"],
        shard=groups.shard(record["group_id"], record["shard"]),
        runner=_owner(record),
        waiting=record["waiting"],
        oldest=record["oldest"],
        version=record["version"],
        saved_at=record["saved_at"],
    )


def dead_letter_from(record: asyncpg.Record, groups: Groups) -> DeadLetter:
    return DeadLetter(
        request_id=record["request_id"],
        shard=groups.shard(record["group_id"], record["shard"]),
        entity_type=record["entity_type"],
        entity_id=record["entity_id"],
        tag=record["tag"],
        payload=record["payload"],
        error=record["error"],
    )


def schedule_from(record: asyncpg.Record, groups: Groups) -> ScheduleRow:
    return ScheduleRow(
        name=record["name"],
        shard=groups.shard(record["group_id"], record["shard"]),
        schedule=record["schedule"],
        timezone=record["timezone"],
        settings=record["settings"].encode(),
        paused=record["paused"],
        done_until=record["done_until"],
        next_at=record["next_at"],
        buffered=record["buffered"],
        running=tuple(record["running"]),
        runner=_owner(record),
    )


def queue_from(record: asyncpg.Record, groups: Groups) -> QueueRow:
    return QueueRow(
        name=record["name"],
        shard=groups.shard(record["group_id"], record["shard"]),
        settings=record["settings"].encode(),
        paused=record["paused"],
        next_at=record["next_at"],
        runner=_owner(record),
    )


def queue_counts_from(row: QueueRow, record: asyncpg.Record | None) -> QueueCounts:
    """``record`` is None for a queue without items."""
    if record is None:
        return QueueCounts(row=row, waiting=0, delayed=0, running=0, oldest=None)
    return QueueCounts(
        row=row,
        waiting=record["waiting"],
        delayed=record["delayed"],
        running=record["running"],
        oldest=record["oldest"],
    )


def place_from(record: asyncpg.Record, groups: Groups) -> Place:
    holder = record["holder"]
    return Place(
        request_id=record["request_id"],
        address=_address(record, groups),
        tag=record["tag"],
        runner=_owner(record),
        due_at=record["due_at"],
        ahead=record["ahead"],
        key=record["key"],
        admitted=record["admitted"],
        running=record["running"],
        holder=None
        if holder is None
        else Holder(
            request_id=holder,
            id=record["holder_id"],
            tag=record["holder_tag"],
            runner=record["holder_runner"],
        ),
    )


def line_from(record: asyncpg.Record) -> Line:
    return Line(priority=record["priority"], key=record["key"], count=record["count"])


def queue_item_from(record: asyncpg.Record) -> QueueItem:
    """An item from whatever columns of its row were read."""
    return QueueItem(**{name: value for name, value in record.items() if name != "told"})


def fire_from(record: asyncpg.Record) -> Fire:
    return Fire(
        schedule=record["schedule"],
        instant=record["instant"],
        outcome=FireOutcome(record["outcome"]),
        request_id=record["request_id"],
        manual=record["manual"],
        at=record["at"],
    )


def heartbeat_from(record: asyncpg.Record) -> StepHeartbeat:
    return StepHeartbeat(
        execution=record["execution"],
        run=record["run"],
        name=record["name"],
        ordinal=record["ordinal"],
        attempt=record["attempt"],
        at=record["at"],
        details=record["details"],
    )


def standing_from(record: asyncpg.Record) -> Standing:
    return Standing(
        workflow=record["workflow"],
        version=record["version"],
        status=_STATUS[record["status"]],
        runner=_owner(record),
        executions=record["executions"],
        misfits=record["misfits"],
    )


def patch_answer_from(record: asyncpg.Record) -> PatchAnswer:
    return PatchAnswer(
        workflow=record["workflow"],
        change=record["change"],
        answer=record["answer"],
        executions=record["executions"],
    )


def _address(record: asyncpg.Record, groups: Groups) -> EntityAddress:
    return EntityAddress(
        groups.shard(record["group_id"], record["shard"]),
        record["entity_type"],
        record["entity_id"],
    )


def _owner(record: asyncpg.Record) -> RunnerId | None:
    runner = record["runner_id"]
    return RunnerId(runner) if runner is not None else None


def _load(stored: str | None) -> RunnerLoad | None:
    """None also for one that another version of the engine wrote."""
    try:
        return None if stored is None else RunnerLoad(**json.loads(stored))
    except TypeError:
        return None


def _headers(stored: bytes | None) -> tuple[dict[str, str], str | None]:
    if stored is None:
        return {}, None
    tree = json.loads(stored)
    return tree["headers"], tree["trace"]
