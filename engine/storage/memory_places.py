"""Where messages and items are in the in-memory database. Called by ``memory_rows``."""

from collections.abc import Mapping
from datetime import datetime

from engine.core.envelope import EnvelopeRequest
from engine.core.ids import ShardId, Snowflake
from engine.storage.memory_queues import MemoryQueues
from engine.storage.memory_shard import MemoryShard
from engine.storage.places import Holder, Place


def place(
    envelope: EnvelopeRequest,
    envelopes: Mapping[Snowflake, EnvelopeRequest],
    shards: Mapping[ShardId, MemoryShard],
    queues: MemoryQueues,
    now: datetime,
) -> Place | None:
    """See ``Storage.place``."""
    home = envelope.address.shard

    def on(number: int | None) -> MemoryShard:
        return shards[home if number is None else ShardId(home.group, number)]

    def holder(request_id: Snowflake, number: int | None) -> Holder:
        other = envelopes[request_id]
        return Holder(
            request_id=request_id,
            id=other.address.entity_id,
            tag=other.tag,
            runner=on(number).runner,
        )

    def put_off(due_at: datetime | None) -> datetime | None:
        return due_at if due_at is not None and due_at > now else None

    if (found := queues.place(envelope.request_id)) is not None:
        item, ahead, running = found
        return Place(
            request_id=item.request_id,
            address=envelope.address,
            tag=envelope.tag,
            runner=on(item.shard).runner,
            due_at=put_off(item.due_at),
            ahead=ahead,
            key=item.key,
            admitted=item.shard is not None,
            running=len(running),
            holder=holder(running[0].request_id, running[0].shard) if running else None,
        )
    rows = {row.request_id: row for row in on(None).messages()}
    if (mine := rows.get(envelope.request_id)) is None:
        return None
    before = [
        row
        for row in rows.values()
        if row.entity == mine.entity and row.seq < mine.seq and not put_off(row.due_at)
    ]
    return Place(
        request_id=envelope.request_id,
        address=envelope.address,
        tag=envelope.tag,
        runner=on(None).runner,
        due_at=put_off(mine.due_at),
        ahead=len(before),
        holder=holder(before[0].request_id, None) if before else None,
    )
