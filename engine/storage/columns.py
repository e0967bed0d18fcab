"""Protocol values as columns of arrays, for statements that write many rows at once.

From ``saving`` and ``lane_session``; the order of the columns is that of the parameters in
``save.sql``, ``flush.sql`` and ``flush_journal.sql``.
"""

import json
from collections.abc import Iterable, Sequence

from engine.core.envelope import EnvelopeRequest
from engine.core.journal import JournalRow
from engine.storage.groups import Groups
from engine.storage.protocol import Commit, ExecutionUpdate, NewReply, SaveRequest

Columns = list[Sequence[object]]

REQUEST_WIDTH = 19
JOURNAL_WIDTH = 14


def request_columns(requests: Iterable[SaveRequest], groups: Groups) -> Columns:
    """Parameters 1 to 19 of ``save`` and ``flush``."""
    return _columns([_request(request, groups) for request in requests], REQUEST_WIDTH)


def journal_columns(rows: Iterable[JournalRow]) -> Columns:
    """All parameters of ``flush_journal``, 21 to 34 of ``flush``."""
    return _columns([_journal(row) for row in rows], JOURNAL_WIDTH)


def reply_columns(replies: Iterable[NewReply], groups: Groups) -> Columns:
    """Parameters 35 to 41 of ``flush``."""
    return _columns([_reply(reply, groups) for reply in replies], 7)


def settled_columns(commits: Iterable[Commit], groups: Groups) -> Columns:
    """Parameters 42 to 44 of ``flush``."""
    rows = [
        (groups.id(commit.shard.group), commit.shard.number, seq)
        for commit in commits
        for seq in commit.settled
    ]
    return _columns(rows, 3)


def execution_columns(updates: Iterable[ExecutionUpdate]) -> Columns:
    """Parameters 45 to 51 of ``flush``."""
    return _columns([_execution(update) for update in updates], 7)


def headers_bytes(envelope: EnvelopeRequest) -> bytes | None:
    """Headers and trace as one JSON object; null when there is neither."""
    if not envelope.headers and envelope.trace is None:
        return None
    return json.dumps({"headers": dict(envelope.headers), "trace": envelope.trace}).encode()


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> Columns:
    return list(zip(*rows, strict=True)) if rows else [()] * width


def _request(request: SaveRequest, groups: Groups) -> tuple[object, ...]:
    envelope, execution, reply_to = (
        request.envelope,
        request.execution,
        request.envelope.reply_to,
    )
    shard = envelope.address.shard
    attributes = execution.attributes if execution else None
    return (
        envelope.request_id,
        groups.id(shard.group),
        shard.number,
        envelope.address.entity_type,
        envelope.address.entity_id,
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
    )


def _journal(row: JournalRow) -> tuple[object, ...]:
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
    )
