"""Who can take no message now, as ``storage.protocol`` has it, asked of both storages: a sweep
passes their requests over, and they hide nobody else's."""

from datetime import UTC, datetime, timedelta

from engine.core.envelope import ReplyTo
from engine.core.ids import ShardId, Snowflake, entity_key
from engine.storage.protocol import (
    STARTS,
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


async def test_starts_are_passed_over_together_and_nothing_else_is(
    process: Process, lane: LaneSession
) -> None:
    begins, told = await save_one(process, start("o-1")), await save_one(process, event("o-1"))
    asked = await save_one(process, message())
    ids = [each.envelope.request_id for each in (begins, told, asked)]

    assert ids_of(await sweep_of(lane, held=(STARTS,))) == ids[1:]
    assert ids_of(await sweep_of(lane)) == ids


async def test_who_is_held_in_one_shard_is_not_so_in_another(
    process: Process, lane: LaneSession
) -> None:
    saved = [
        each.envelope.request_id
        for shard in (ONE, TWO)
        for each in (
            await save_one(process, start(f"o-{shard.number}", shard=shard)),
            await save_one(process, message(shard=shard)),
        )
    ]
    held = [(STARTS, STOCK), ()]

    for shards, wanted in (((ONE, TWO), saved[2:]), ((TWO, ONE), saved[:2])):
        swept = await lane.sweep(
            shards, in_flight=(), resident=(), held=held, limit=10, horizon=timedelta(0)
        )
        assert ids_of(swept) == wanted


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


async def test_only_entities_that_are_admitted_get_requests_while_nobody_else_can(
    process: Process, lane: LaneSession
) -> None:
    mine, other, execution = message(), message(entity="sku-2"), start("o-1")
    await process.storage.save([other, mine, execution])

    swept = await sweep_of(lane, admitted=(STOCK,))

    assert ids_of(swept) == [each.envelope.request_id for each in (mine, execution)]
    assert ids_of(await sweep_of(lane, admitted=())) == [execution.envelope.request_id]


async def test_rows_up_to_a_floor_are_not_looked_at_unless_they_were_to_come_later(
    process: Process, lane: LaneSession
) -> None:
    earlier = datetime.now(UTC) - HOUR
    due = await save_one(process, message(deliver_at=earlier))
    ids = await save_many(process, 3)
    seqs = await seqs_of(lane)

    swept = await sweep_of(lane, floors=(seqs[2],))

    assert ids_of(swept) == [due.envelope.request_id, ids[2]]
    assert [row.later for row in swept.rows] == [True, False]


async def test_a_sweep_that_passes_rows_over_tells_how_far_it_has_looked(
    process: Process, lane: LaneSession
) -> None:
    await save_many(process, 3)
    (*_, last) = await seqs_of(lane)

    assert (await sweep_of(lane)).last is None
    assert (await sweep_of(lane, held=(STOCK,))).last == last
    assert (await sweep_of(lane, admitted=())).last == last
    assert (await sweep_of(lane, held=(STOCK,), floors=(last,))).last == last
