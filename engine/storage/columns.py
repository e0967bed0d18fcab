"""Protocol values as columns of arrays, for statements that write many rows at once.

From ``saving`` and ``batch``; the order of the columns is that of the parameters in
``save.sql``, ``flush.sql`` and the files of their names.
"""

import json
from collections.abc import Iterable, Sequence

from engine.core.envelope import EnvelopeRequest
from engine.core.ids import ShardId, Snowflake, entity_key
from engine.core.journal import JournalRow
from engine.storage.entities import StateWrite
from engine.storage.groups import Groups
from engine.storage.heartbeats import StepHeartbeat
from engine.storage.protocol import Commit, ExecutionUpdate, NewReply, SaveRequest
from engine.storage.queues import QueueItem, QueueWrite
from engine.storage.schedules import Fire, ScheduleRow

Columns = list[Sequence[object]]

REQUEST_WIDTH = 20
JOURNAL_WIDTH = 14


def request_columns(requests: Iterable[SaveRequest], groups: Groups) -> Columns:
    """Parameters 1 to 20 of ``save`` and ``flush``."""
    return _columns([request_values(request, groups) for request in requests], REQUEST_WIDTH)


def journal_columns(rows: Iterable[JournalRow]) -> Columns:
    """All parameters of ``flush_journal``, 22 to 35 of ``flush``."""
    return _columns([journal_values(row) for row in rows], JOURNAL_WIDTH)


def reply_columns(replies: Iterable[NewReply], groups: Groups) -> Columns:
    """Parameters 36 to 42 of ``flush``."""
    return _columns([_reply(reply, groups) for reply in replies], 7)


def inbox_columns(rows: Iterable[tuple[ShardId, Sequence[int]]], groups: Groups) -> Columns:
    """Parameters 43 to 45 of ``flush``, all of ``count_failed`` and ``mark_tried``."""
    named = [(groups.id(shard.group), shard.number, seq) for shard, seqs in rows for seq in seqs]
    return _columns(named, 3)


def execution_columns(updates: Iterable[ExecutionUpdate]) -> Columns:
    """Parameters 46 to 56 of ``flush``."""
    return _columns([_execution(update) for update in updates], 11)


def finish_values(commit: Commit, groups: Groups) -> list[object] | None:
    """The parameters of ``finish`` alone, if the commit holds one row for each of its lists."""
    execution, shard = commit.execution, commit.shard
    if execution is None or commit.requests or commit.states:
        return None
    if not len(commit.journal) == len(commit.replies) == len(commit.settled) == 1:
        return None
    return [
        *journal_values(commit.journal[0]),
        *_reply(commit.replies[0], groups),
        *(groups.id(shard.group), shard.number, commit.settled[0]),
        *_execution(execution),
    ]


State = tuple[ShardId, StateWrite, Snowflake | None]
"""A state to write, and the request whose exit it comes with."""


def state_columns(states: Iterable[State], groups: Groups) -> Columns:
    """Parameters 57 to 63 of ``flush``."""
    rows = [
        (
            groups.id(shard.group),
            shard.number,
            state.entity_type,
            state.entity_id,
            state.version,
            state.payload,
            request_id,
        )
        for shard, state, request_id in states
    ]
    return _columns(rows, 7)


def opening_columns(request: SaveRequest, groups: Groups) -> list[object]:
    """The parameters of ``open``, but for the last two."""
    opening, message = request.opening, request.envelope
    assert opening is not None
    return [
        *start_values(opening, groups),
        request.joins,
        message.request_id,
        message.tag,
        message.key,
        headers_bytes(message),
        message.payload,
        request.wait,
    ]


def is_plain_start(request: SaveRequest) -> bool:
    """Whether ``start`` can store it: what nobody but a waiter is to hear the end of."""
    envelope, execution = request.envelope, request.execution
    if execution is None or envelope.key is None:
        return False
    return not (execution.parent or envelope.reply_to or envelope.uninterruptible)


def start_values(request: SaveRequest, groups: Groups) -> list[object]:
    """The parameters of ``start``, but for the last: the first ones of ``open``."""
    envelope, execution = request.envelope, request.execution
    assert execution is not None
    address, attributes = envelope.address, execution.attributes
    return [
        envelope.request_id,
        groups.id(address.shard.group),
        address.shard.number,
        address.entity_type,
        address.entity_id,
        envelope.deliver_at,
        envelope.key,
        headers_bytes(envelope),
        envelope.payload,
        execution.version,
        None if attributes is None else attributes.decode(),
    ]


def schedule_columns(schedules: Iterable[ScheduleRow], groups: Groups) -> Columns:
    """All parameters of ``write_schedules``."""
    return _columns([_schedule(schedule, groups) for schedule in schedules], 11)


def fire_columns(fires: Iterable[Fire]) -> Columns:
    """All parameters of ``write_fires``."""
    rows = [
        (fire.schedule, fire.instant, fire.outcome.value, fire.request_id, fire.manual, fire.at)
        for fire in fires
    ]
    return _columns(rows, 6)


def heartbeat_columns(heartbeats: Iterable[StepHeartbeat]) -> Columns:
    """All parameters of ``write_heartbeats``; of ``drop_heartbeats`` the first three."""
    rows = [
        (*each.step, each.name, each.ordinal, each.attempt, each.at, each.details)
        for each in heartbeats
    ]
    return _columns(rows, 8)


def dispatch_arguments(write: QueueWrite, groups: Groups) -> list[object]:
    """All parameters of ``dispatch``."""
    row = write.row
    return [
        write.queue,
        groups.id(write.shard.group),
        write.shard.number,
        *_columns([_item(item) for item in write.arrived], 8),
        *_columns([(line.priority, line.key, line.count) for line in write.lines], 3),
        write.targets,
        write.ripe,
        write.freed,
        write.settled,
        *_columns(write.interrupted, 2),
        None if row is None else row.settings.decode(),
        None if row is None else row.paused,
        None if row is None else row.next_at,
        *_columns([(id, kind.value, payload) for id, kind, payload in write.ended], 3),
    ]


def headers_bytes(envelope: EnvelopeRequest) -> bytes | None:
    """Headers and trace as one JSON object; null when there is neither."""
    if not envelope.headers and envelope.trace is None:
        return None
    return json.dumps({"headers": dict(envelope.headers), "trace": envelope.trace}).encode()


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> Columns:
    """One of nothing but nulls is left empty: ``unnest`` makes it as long as the longest."""
    if not rows:
        return [()] * width
    return [column if column.count(None) < len(rows) else () for column in zip(*rows, strict=True)]


def request_values(request: SaveRequest, groups: Groups) -> tuple[object, ...]:
    envelope, execution, reply_to = (
        request.envelope,
        request.execution,
        request.envelope.reply_to,
    )
    shard = envelope.address.shard
    attributes = execution.attributes if execution else None
    entity_type, entity_id = envelope.address.entity_type, envelope.address.entity_id
    of_entity = execution is None and request.target is None
    return (
        envelope.request_id,
        groups.id(shard.group),
        shard.number,
        entity_type,
        entity_id,
        envelope.tag,
        envelope.uninterruptible.value,
        reply_to.execution if reply_to else None,
        groups.id(reply_to.shard.group) if reply_to else None,
        reply_to.shard.number if reply_to else None,
        envelope.deliver_at,
        envelope.key,
        headers_bytes(envelope),
        envelope.payload,
        request.target,
        execution.version if execution else None,
        execution.parent if execution else None,
        attributes.decode() if attributes is not None else None,
        request.wait,
        entity_key(entity_type, entity_id) if of_entity else None,
    )


def _item(item: QueueItem) -> tuple[object, ...]:
    return (
        item.request_id,
        item.seq,
        item.priority,
        item.key,
        item.shard,
        item.due_at,
        item.debounce,
        item.since,
    )


def journal_values(row: JournalRow) -> tuple[object, ...]:
    """All parameters of ``append``."""
    return (
        row.execution,
        row.run,
        row.position,
        row.kind.value,
        row.outcome.value,
        row.attempt,
        row.ordinal,
        row.digest,
        row.source,
        row.at,
        row.started_at,
        row.due_at,
        row.name,
        row.payload,
    )


def _reply(reply: NewReply, groups: Groups) -> tuple[object, ...]:
    to = reply.reply_to
    return (
        reply.request_id,
        reply.sequence,
        reply.kind.value,
        reply.payload,
        to.execution if to else None,
        groups.id(to.shard.group) if to else None,
        to.shard.number if to else None,
    )


def _execution(update: ExecutionUpdate) -> tuple[object, ...]:
    return (
        update.request_id,
        update.run,
        update.status.value,
        update.started_at,
        update.finished_at,
        update.wake_at,
        update.waiting,
        update.verdict.value,
        update.version,
        update.error,
        None if update.attributes is None else update.attributes.decode(),
    )


def _schedule(row: ScheduleRow, groups: Groups) -> tuple[object, ...]:
    return (
        groups.id(row.shard.group),
        row.shard.number,
        row.name,
        row.schedule,
        row.timezone,
        row.settings.decode(),
        row.paused,
        row.done_until,
        row.next_at,
        row.buffered,
        "{" + ",".join(str(request_id) for request_id in row.running) + "}",
    )
