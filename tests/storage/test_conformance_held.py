"""Who can take no message now, as ``storage.protocol`` has it, asked of both storages: a sweep
passes their requests over, and they hide nobody else's."""

from datetime import UTC, datetime, timedelta

from engine.core.envelope import ReplyTo
from engine.core.ids import ShardId, Snowflake, entity_key
from engine.storage.protocol import (
    Commit,
    LaneSession,
)
from tests.storage.world import (
    ONE,
    TWO,
    Process,
    event,
    ids_of,
    message,
    next_id,
    save_one,
    seqs_of,
    start,
    success,
    sweep_of,
)

HOUR = timedelta(hours=1)
STOCK = entity_key("Stock", "sku-1")


async def save_many(process: Process, count: int, *, shard: ShardId = ONE) -> list[Snowflake]:
    requests = [message(shard=shard) for _ in range(count)]
    await process.storage.save(requests)
    return [request.envelope.request_id for request in requests]


async def test_requests_to_held_entities_are_passed_over(
    process: Process, lane: LaneSession
) -> None:
    full, free, same_id = message(), message(entity="sku-2"), message(entity_type="Basket")
    await process.storage.save([full, free, same_id])

    swept = await sweep_of(lane, held=(STOCK,))

    assert ids_of(swept) == [each.envelope.request_id for each in (free, same_id)]


async def test_what_was_passed_over_is_delivered_once_it_can_be(
    process: Process, lane: LaneSession
) -> None:
    ids = await save_many(process, 2)
    assert ids_of(await sweep_of(lane, held=(STOCK,))) == []

    assert ids_of(await sweep_of(lane)) == ids


async def test_rows_of_held_entities_do_not_fill_the_limit(
    process: Process, lane: LaneSession
) -> None:
    await save_many(process, 300)
    others = [message(entity=f"other-{n}") for n in range(2)]
    await process.storage.save(others)

    swept = await sweep_of(lane, held=(STOCK,), limit=2)

    assert ids_of(swept) == [each.envelope.request_id for each in others]
    assert not swept.more


async def test_held_rows_that_became_due_do_not_fill_the_limit(
    process: Process, lane: LaneSession
) -> None:
    earlier = datetime.now(UTC) - HOUR
    await process.storage.save([message(deliver_at=earlier) for _ in range(300)])
    other = await save_one(process, message(entity="other", deliver_at=earlier + HOUR / 2))

    swept = await sweep_of(lane, held=(STOCK,), limit=1)

    assert ids_of(swept) == [other.envelope.request_id]
    assert not swept.more


async def test_held_and_in_flight_are_passed_over_together(
    process: Process, lane: LaneSession
) -> None:
    full, flying, free = message(), message(entity="sku-2"), message(entity="sku-2")
    await process.storage.save([full, flying, free])
    (_, seq, _) = await seqs_of(lane)

    swept = await sweep_of(lane, held=(STOCK,), in_flight=(seq,))

    assert ids_of(swept) == [free.envelope.request_id]


async def test_requests_to_held_executions_are_passed_over_and_replies_are_not(
    process: Process, lane: LaneSession
) -> None:
    held, free = await save_one(process, start("held")), await save_one(process, start("free"))
    await save_one(process, event("held"))
    id = held.envelope.request_id
    reply_to = ReplyTo(execution=id, shard=ONE)
    asked = await save_one(process, message(shard=TWO, reply_to=reply_to))
    await lane.flush([Commit(shard=ONE, replies=[success(asked, reply_to=reply_to)])])

    swept = await sweep_of(lane, held=(id,))

    assert ids_of(swept) == [free.envelope.request_id, asked.envelope.request_id]


async def test_holding_nobody_there_is_changes_nothing(process: Process, lane: LaneSession) -> None:
    ids = await save_many(process, 2)

    swept = await sweep_of(lane, held=(entity_key("Stock", "none"), next_id(), -1))

    assert ids_of(swept) == ids


async def test_follow_ups_to_held_entities_are_passed_over(
    process: Process, lane: LaneSession
) -> None:
    await lane.flush([Commit(shard=ONE, requests=[message(), message(entity="sku-2")])])

    swept = await sweep_of(lane, held=(STOCK,))

    assert [row.envelope.address.entity_id for row in swept.rows] == ["sku-2"]
