"""What a lane's sweep found, from the rows of ``sweep.sql``."""

import logging
from collections import Counter
from collections.abc import Sequence

import asyncpg

from engine.core.ids import RunnerId
from engine.core.reply import ReplyKind
from engine.storage.groups import Groups
from engine.storage.protocol import InboxKind, InboxRow, StoredExecution, StoredReply, Sweep
from engine.storage.records import envelope_from, execution_from

log: logging.Logger = logging.getLogger(__name__)

_KIND = {each.value: each for each in InboxKind}


def sweep_from(
    answer: Sequence[asyncpg.Record],
    groups: Groups,
    runner: RunnerId,
    *,
    limit: int,
    per_shard: int,
) -> Sweep:
    """``limit``, ``per_shard``: of rows, as asked."""
    header, *rows = answer
    shards = Counter((row["inbox_group_id"], row["inbox_shard"]) for row in rows)
    most = max(shards.values(), default=0)
    found: list[InboxRow] = []
    for row in rows[:limit]:
        if row["request_id"] is None:
            log.error(
                "an inbox row has no envelope; it cannot be delivered", extra={"seq": row["seq"]}
            )
            continue
        found.append(_inbox_row(row, groups, runner))
    return Sweep(
        rows=found,
        due=header["due"][:limit],
        next_due=header["next_due"],
        more=len(rows) > limit or len(header["due"]) > limit or most >= per_shard,
        now=header["now"],
        last=header["last"],
        running=header["running"],
        newest=header["newest"],
    )


def _inbox_row(row: asyncpg.Record, groups: Groups, runner: RunnerId) -> InboxRow:
    shard = groups.shard(row["inbox_group_id"], row["inbox_shard"])
    state: StoredExecution | None = None
    if row["workflow"] is not None:
        state = execution_from(row, shard, runner, id="execution")
    reply: StoredReply | None = None
    if row["reply_kind"] is not None:
        reply = StoredReply(
            request_id=row["request_id"],
            sequence=row["reply_sequence"],
            kind=ReplyKind(row["reply_kind"]),
            payload=row["reply_payload"],
        )
    return InboxRow(
        seq=row["seq"],
        kind=_KIND[row["inbox_kind"]],
        shard=shard,
        envelope=envelope_from(row, groups),
        execution=row["execution"],
        state=state,
        reply=reply,
        target=row["target"],
        failures=row["inbox_failures"],
        trial=row["trial"],
    )
