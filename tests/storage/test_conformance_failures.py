"""Failed deliveries and dead letters as ``storage.protocol`` has them, asked of both storages: what
counts against a request, what passes over those who can take none, what is delivered again."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from engine.core.envelope import ReplyTo
from engine.core.ids import ShardId, Snowflake, entity_key
from engine.core.reply import ReplyKind
from engine.core.status import Status
from engine.storage.entities import DeadFilter, DeadLetter
from engine.storage.protocol import (
    SUSPECT,
    BadBatch,
    Commit,
    InboxKind,
    LaneSession,
    SaveOutcome,
    SaveRequest,
    StoredExecution,
)
from tests.eventually import eventually
from tests.storage.world import (
    ONE,
    TWO,
    Process,
    World,
    chunk,
    defect,
    event,
    failures_of,
    ids_of,
    interrupt,
    message,
    next_id,
    position_of,
    save_one,
    seqs_of,
    start,
    step,
    success,
    sweep_of,
    take_over,
    update,
)

HOUR = timedelta(hours=1)
LATER = datetime.now(UTC) + timedelta(days=1)
STOCK = entity_key("Stock", "sku-1")
TTL = timedelta(milliseconds=150)


async def save_many(process: Process, count: int, *, shard: ShardId = ONE) -> list[Snowflake]:
    requests = [message(shard=shard) for _ in range(count)]
    await process.storage.save(requests)
    return [request.envelope.request_id for request in requests]


async def fail(lane: LaneSession, seqs: Sequence[int], times: int = 1) -> None:
    for _ in range(times):
        await lane.flush([Commit(shard=ONE, failed=list(seqs))])


async def trials_of(lane: LaneSession) -> list[bool]:
    return [row.trial for row in (await sweep_of(lane, limit=1000)).rows]


async def execution_of(process: Process, request: SaveRequest) -> StoredExecution:
    (loaded,) = await process.storage.load([request.envelope.request_id])
    return loaded.execution


# --- counting by the owner ------------------------------------------------------------------------


async def test_a_request_has_not_failed_however_often_it_is_read(
    process: Process, lane: LaneSession
) -> None:
    (id,) = await save_many(process, 1)

    for _ in range(3):
        assert await failures_of(lane) == {id: 0}
    assert await trials_of(lane) == [False]


async def test_an_owner_counts_failed_deliveries(process: Process, lane: LaneSession) -> None:
    one, two = await save_many(process, 2)
    first, second = await seqs_of(lane)

    await fail(lane, [first, second])
    await fail(lane, [second])

    assert await failures_of(lane) == {one: 1, two: 2}


async def test_a_failure_of_what_is_not_there_is_harmless(
    process: Process, lane: LaneSession
) -> None:
    (id,) = await save_many(process, 1)
    (seq,) = await seqs_of(lane)

    await lane.flush([Commit(shard=ONE, failed=[seq + 1000], tried=[seq + 1000])])

    assert await failures_of(lane) == {id: 0}
    assert await trials_of(lane) == [False]


async def test_a_row_that_is_settled_in_the_same_flush_is_settled(
    process: Process, lane: LaneSession
) -> None:
    await save_many(process, 1)
    seqs = await seqs_of(lane)

    await lane.flush([Commit(shard=ONE, settled=seqs, failed=seqs, tried=seqs)])

    assert await seqs_of(lane) == []


async def test_only_rows_of_the_commits_own_shard_are_counted(
    process: Process, lane: LaneSession
) -> None:
    await lane.acquire([TWO])
    (here,) = await save_many(process, 1)
    (there,) = await save_many(process, 1, shard=TWO)
    (seq,) = [row.seq for row in (await sweep_of(lane, TWO)).rows]

    await lane.flush([Commit(shard=ONE, failed=[seq], tried=[seq])])

    assert await failures_of(lane, ONE, TWO) == {here: 0, there: 0}


async def test_a_batch_that_is_refused_counts_nothing(process: Process, lane: LaneSession) -> None:
    (id,) = await save_many(process, 1)
    taken = step(next_id(), 1)
    await lane.flush([Commit(shard=ONE, journal=[taken])])

    with pytest.raises(BadBatch):
        await lane.flush(
            [
                Commit(shard=ONE, failed=await seqs_of(lane)),
                Commit(shard=ONE, journal=[taken]),
            ]
        )

    assert await failures_of(lane) == {id: 0}


async def test_a_request_on_trial_is_seen_to_be_until_it_fails(
    process: Process, lane: LaneSession
) -> None:
    await save_many(process, 2)
    first, second = await seqs_of(lane)

    await lane.flush([Commit(shard=ONE, tried=[first, second])])
    assert await trials_of(lane) == [True, True]

    await fail(lane, [first])
    assert await trials_of(lane) == [False, True]


async def test_counting_a_request_keeps_its_place(process: Process, lane: LaneSession) -> None:
    ids = await save_many(process, 3)
    seqs = await seqs_of(lane)

    await lane.flush([Commit(shard=ONE, failed=[seqs[1]], tried=[seqs[0]])])

    assert ids_of(await sweep_of(lane)) == ids
    assert await seqs_of(lane) == seqs


# --- counting by the next owner -------------------------------------------------------------------


async def test_what_a_lost_owner_may_have_had_in_hand_has_failed(
    world: World, process: Process, lane: LaneSession
) -> None:
    one, two = await save_many(process, 2)

    successor = await take_over(world, lane)
    assert await failures_of(successor) == {one: 1, two: 1}

    (three,) = await save_many(process, 1)
    third = await take_over(world, successor)
    assert await failures_of(third) == {one: 2, two: 2, three: 1}


async def test_each_lost_shard_is_counted_for_itself(
    world: World, process: Process, lane: LaneSession
) -> None:
    await lane.acquire([TWO])
    (lost,) = await save_many(process, 1)
    (released,) = await save_many(process, 1, shard=TWO)
    await lane.release([TWO])

    successor = await take_over(world, lane, ONE, TWO)

    assert await failures_of(successor, ONE, TWO) == {lost: 1, released: 0}


async def test_a_release_counts_nothing(world: World, process: Process, lane: LaneSession) -> None:
    (id,) = await save_many(process, 1)
    _, successor = await world.runner_with_lane()

    await lane.release([ONE])
    await successor.acquire([ONE])

    assert await failures_of(successor) == {id: 0}


async def test_an_owner_that_lost_its_session_and_comes_back_counts_nothing(
    world: World, process: Process, lane: LaneSession
) -> None:
    (id,) = await save_many(process, 1)
    lane.terminate()
    again = await process.lane()
    world.stack.push_async_callback(again.close)

    await eventually(lambda: again.acquire([ONE]))

    assert await failures_of(again) == {id: 0}


async def test_the_first_owner_of_a_shard_counts_nothing(world: World, process: Process) -> None:
    (id,) = await save_many(process, 1)
    _, lane = await world.runner_with_lane()

    await lane.acquire([ONE])

    assert await failures_of(lane) == {id: 0}


async def test_a_runner_that_left_in_good_order_had_nothing_in_hand(
    world: World, process: Process, lane: LaneSession
) -> None:
    (id,) = await save_many(process, 1)
    _, successor = await world.runner_with_lane()

    await lane.close()
    await process.registry.leave(process.runner)

    await eventually(lambda: successor.acquire([ONE]))
    assert await failures_of(successor) == {id: 0}


async def test_a_runner_that_had_to_be_buried_had_its_requests_in_hand(
    world: World, process: Process, lane: LaneSession
) -> None:
    (id,) = await save_many(process, 1)
    peer, successor = await world.runner_with_lane()

    async def buried() -> bool:
        await peer.registry.beat(peer.runner)
        return await peer.registry.bury(process.runner, by=peer.runner, ttl=TTL)

    async def gone() -> bool:
        return await peer.registry.end_sessions(process.runner) == 0

    await eventually(buried)
    await eventually(gone)
    await successor.acquire([ONE])

    assert await failures_of(successor) == {id: 1}


async def test_requests_of_the_future_do_not_stand_in_for_those_in_hand(
    world: World, process: Process, lane: LaneSession
) -> None:
    await process.storage.save([message(deliver_at=LATER) for _ in range(200)])
    old = await save_one(process, message(deliver_at=datetime.now(UTC) - HOUR))
    (plain,) = await save_many(process, 1)

    successor = await take_over(world, lane)

    assert await failures_of(successor) == {old.envelope.request_id: 1, plain: 1}


async def test_only_the_oldest_requests_were_in_hand(
    world: World, process: Process, lane: LaneSession
) -> None:
    ids = await save_many(process, 203)

    successor = await take_over(world, lane)

    failures = await failures_of(successor)
    assert [failures[id] for id in ids] == [1] * 200 + [0] * 3


async def test_replies_and_interrupts_do_not_fail(
    world: World, process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    reply_to = ReplyTo(execution=run.envelope.request_id, shard=ONE)
    asked = await save_one(process, message(shard=TWO, reply_to=reply_to))
    stopped = await save_one(process, message())
    await process.storage.interrupt([interrupt(stopped)])
    await lane.flush([Commit(shard=ONE, replies=[success(asked, reply_to=reply_to)])])

    successor = await take_over(world, lane)

    kinds = {row.kind: row.failures for row in (await sweep_of(successor)).rows[1:]}
    assert kinds == {InboxKind.REQUEST: 1, InboxKind.INTERRUPT: 0, InboxKind.REPLY: 0}


# --- trials ---------------------------------------------------------------------------------------


async def test_when_there_was_a_trial_nothing_else_is_blamed(
    world: World, process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    beside, tried, other = await save_many(process, 3)
    seqs = await seqs_of(lane)
    await fail(lane, [seqs[2]], SUSPECT)
    await lane.flush([Commit(shard=ONE, tried=[seqs[2]])])

    successor = await take_over(world, lane)

    failures = await failures_of(successor)
    assert [failures[id] for id in (beside, tried, other)] == [0, SUSPECT + 1, 0]
    assert (await execution_of(process, run)).failures == 0
    assert await trials_of(successor) == [False] * 4


async def test_a_trial_on_one_shard_clears_nobody_on_another(
    world: World, process: Process, lane: LaneSession
) -> None:
    await lane.acquire([TWO])
    (tried,) = await save_many(process, 1)
    (other,) = await save_many(process, 1, shard=TWO)
    await lane.flush([Commit(shard=ONE, tried=await seqs_of(lane))])

    successor = await take_over(world, lane, ONE, TWO)

    assert await failures_of(successor, ONE, TWO) == {tried: 1, other: 1}


async def test_a_suspect_is_blamed_for_nothing_but_its_trial(
    world: World, process: Process, lane: LaneSession
) -> None:
    suspect, other = await save_many(process, 2)
    await fail(lane, (await seqs_of(lane))[:1], SUSPECT)

    successor = await take_over(world, lane)

    assert await failures_of(successor) == {suspect: SUSPECT, other: 1}


async def test_suspects_do_not_shield_what_is_behind_them(
    world: World, process: Process, lane: LaneSession
) -> None:
    suspects = await save_many(process, 201)
    others = await save_many(process, 2)
    seqs = [row.seq for row in (await sweep_of(lane, limit=1000)).rows]
    await fail(lane, seqs[:201], SUSPECT)

    successor = await take_over(world, lane)

    failures = await failures_of(successor)
    assert {failures[id] for id in suspects} == {SUSPECT}
    assert [failures[id] for id in others] == [1, 1]


@pytest.mark.parametrize("end", ["released", "lost to itself"])
async def test_a_trial_ends_with_an_ownership_that_was_not_lost_to_another(
    world: World, process: Process, lane: LaneSession, end: str
) -> None:
    tried, other = await save_many(process, 2)
    await lane.flush([Commit(shard=ONE, tried=(await seqs_of(lane))[:1])])
    if end == "released":
        await lane.release([ONE])
        _, second = await world.runner_with_lane()
    else:
        lane.terminate()
        second = await process.lane()
        world.stack.push_async_callback(second.close)

    await eventually(lambda: second.acquire([ONE]))
    assert await trials_of(second) == [False, False]

    third = await take_over(world, second)
    assert await failures_of(third) == {tried: 1, other: 1}


# --- executions -----------------------------------------------------------------------------------


async def test_an_execution_with_work_in_hand_fails_with_its_owner(
    world: World, process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    assert (await execution_of(process, run)).failures == 0

    successor = await take_over(world, lane)
    assert (await execution_of(process, run)).failures == 1

    third = await take_over(world, successor)
    assert (await execution_of(process, run)).failures == 2
    (row,) = (await sweep_of(third)).rows
    assert row.state is not None
    assert (row.state.failures, row.failures) == (2, 0)
    found = await process.storage.find("Fulfil", "o-1")
    assert found is not None
    assert found.failures == 2


async def test_an_execution_that_got_on_fails_as_if_for_the_first_time(
    world: World, process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    id = run.envelope.request_id
    second = await take_over(world, await take_over(world, lane))
    await second.flush([Commit(shard=ONE, journal=[step(id, 4)])])

    third = await take_over(world, second)
    assert (await execution_of(process, run)).failures == 1

    fourth = await take_over(world, third)
    assert (await execution_of(process, run)).failures == 2

    await fourth.flush([Commit(shard=ONE, journal=[step(id, 5)])])
    await take_over(world, fourth)
    assert (await execution_of(process, run)).failures == 1


async def test_a_new_run_of_an_execution_has_not_failed(
    world: World, process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    id = run.envelope.request_id
    await lane.flush([Commit(shard=ONE, journal=[step(id, 7)])])
    second = await take_over(world, await take_over(world, lane))

    await second.flush([update(id, Status.RUNNING, run=2)])
    assert (await execution_of(process, run)).failures == 0

    await second.flush([Commit(shard=ONE, journal=[step(id, 2, run=2)])])
    third = await take_over(world, await take_over(world, second))
    assert (await execution_of(process, run)).failures == 2
    await third.flush([update(id, Status.RUNNING, run=2)])
    assert (await execution_of(process, run)).failures == 2


async def test_an_execution_that_was_to_wake_was_in_hand(
    world: World, process: Process, lane: LaneSession
) -> None:
    due, asleep = await save_one(process, start("due")), await save_one(process, start("asleep"))
    now = datetime.now(UTC)
    to_wake = update(due.envelope.request_id, Status.SUSPENDED, wake_at=now - HOUR)
    to_wake.settled = await seqs_of(lane)
    sleeping = update(asleep.envelope.request_id, Status.SUSPENDED, wake_at=now + HOUR)
    await lane.flush([to_wake, sleeping])

    await take_over(world, lane)

    assert (await execution_of(process, due)).failures == 1
    assert (await execution_of(process, asleep)).failures == 0


async def test_an_execution_with_several_rows_fails_once(
    world: World, process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    await process.storage.save([event("o-1"), event("o-1")])
    await lane.flush(
        [update(run.envelope.request_id, Status.RUNNING, wake_at=datetime.now(UTC) - HOUR)]
    )

    await take_over(world, lane)

    assert (await execution_of(process, run)).failures == 1


@pytest.mark.parametrize("status", [Status.BLOCKED, Status.FAILED, Status.SUCCEEDED])
async def test_an_execution_that_nobody_runs_does_not_fail(
    world: World, process: Process, lane: LaneSession, status: Status
) -> None:
    run = await save_one(process, start("o-1"))
    await lane.flush([update(run.envelope.request_id, status)])

    await take_over(world, lane)

    assert (await execution_of(process, run)).failures == 0


async def test_executions_of_other_shards_do_not_fail(
    world: World, process: Process, lane: LaneSession
) -> None:
    other = await save_one(process, start("o-2", shard=TWO))

    await take_over(world, lane)

    assert (await execution_of(process, other)).failures == 0


# --- who can take no message ----------------------------------------------------------------------


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


# --- dead letters ---------------------------------------------------------------------------------


async def bury(process: Process, lane: LaneSession, request: SaveRequest) -> SaveRequest:
    """Store a request that ends in a defect."""
    await save_one(process, request)
    rows = (await sweep_of(lane, limit=1000)).rows
    (seq,) = [row.seq for row in rows if row.envelope.request_id == request.envelope.request_id]
    await lane.flush([Commit(shard=ONE, replies=[defect(request)], settled=[seq])])
    return request


async def dead(process: Process, **filter: object) -> list[Snowflake]:
    letters = await process.storage.dead_letters(DeadFilter(**filter), limit=100)  # type: ignore[arg-type]
    return [letter.request_id for letter in letters]


async def test_a_dead_letter_tells_what_was_asked_and_what_went_wrong(
    process: Process, lane: LaneSession
) -> None:
    request = await bury(process, lane, message(payload=b"\x00[1]"))

    (letter,) = await process.storage.dead_letters(DeadFilter(), limit=10)

    assert letter == DeadLetter(
        request_id=request.envelope.request_id,
        shard=ONE,
        entity_type="Stock",
        entity_id="sku-1",
        tag="reserve",
        payload=b"\x00[1]",
        error=defect(request).payload,
    )


async def test_only_defects_are_dead_letters(process: Process, lane: LaneSession) -> None:
    requests = [message() for _ in range(5)]
    await process.storage.save(requests)
    kinds = [ReplyKind.SUCCESS, ReplyKind.FAILURE, ReplyKind.INTERRUPTED, ReplyKind.CHUNK]
    replies = [success(each) for each in requests[:4]]
    await lane.flush(
        [
            Commit(
                shard=ONE,
                replies=[
                    type(reply)(
                        request_id=reply.request_id, sequence=0, kind=kind, payload=b'"why"'
                    )
                    for reply, kind in zip(replies, kinds, strict=True)
                ],
            )
        ]
    )

    assert await dead(process) == []


async def test_dead_letters_come_youngest_first_in_pages(
    process: Process, lane: LaneSession
) -> None:
    ids = [(await bury(process, lane, message())).envelope.request_id for _ in range(5)]

    first = await process.storage.dead_letters(DeadFilter(), limit=2)
    second = await process.storage.dead_letters(DeadFilter(after=first[-1].request_id), limit=2)
    third = await process.storage.dead_letters(DeadFilter(after=second[-1].request_id), limit=2)

    pages = [[letter.request_id for letter in page] for page in (first, second, third)]
    assert pages == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]


async def test_dead_letters_are_found_by_whom_they_were_for(
    process: Process, lane: LaneSession
) -> None:
    stock = await bury(process, lane, message())
    other = await bury(process, lane, message(entity="sku-2"))
    basket = await bury(process, lane, message(entity_type="Basket"))
    ids = [each.envelope.request_id for each in (stock, other, basket)]

    assert await dead(process, entity_type="Stock") == [ids[1], ids[0]]
    assert await dead(process, entity_id="sku-1") == [ids[2], ids[0]]
    assert await dead(process, entity_type="Stock", entity_id="sku-1") == [ids[0]]
    assert await dead(process, request_id=ids[2]) == [ids[2]]
    assert await dead(process, request_id=ids[2], entity_type="Stock") == []
    assert await dead(process, request_id=ids[1], after=ids[1]) == []
    assert await dead(process, request_id=next_id()) == []


async def test_a_revived_request_is_delivered_as_if_for_the_first_time(
    process: Process, lane: LaneSession
) -> None:
    request = message(payload=b"again")
    await save_one(process, request)
    await fail(lane, await seqs_of(lane), 5)
    await lane.flush([Commit(shard=ONE, replies=[defect(request)], settled=await seqs_of(lane))])

    assert list(await process.storage.revive([request.envelope.request_id])) == [ONE]

    (row,) = (await sweep_of(lane)).rows
    assert (row.kind, row.envelope, row.execution) == (InboxKind.REQUEST, request.envelope, None)
    assert (row.failures, row.trial) == (0, False)
    assert list(await process.storage.replies([request.envelope.request_id])) == []
    assert await dead(process) == []


async def test_a_revived_request_gets_its_exit(process: Process, lane: LaneSession) -> None:
    request = await bury(process, lane, message())
    await process.storage.revive([request.envelope.request_id])

    await lane.flush(
        [Commit(shard=ONE, replies=[success(request, b"5")], settled=await seqs_of(lane))]
    )

    (exit,) = await process.storage.replies([request.envelope.request_id])
    assert (exit.kind, exit.payload) == (ReplyKind.SUCCESS, b"5")
    assert await seqs_of(lane) == []


async def test_a_revived_request_can_be_held_and_interrupted(
    process: Process, lane: LaneSession
) -> None:
    request = await bury(process, lane, message())
    await process.storage.revive([request.envelope.request_id])

    assert ids_of(await sweep_of(lane, held=(STOCK,))) == []
    assert await process.storage.interrupt([interrupt(request)]) == [True]
    rows = (await sweep_of(lane)).rows
    assert [(row.kind, row.target) for row in rows] == [
        (InboxKind.REQUEST, None),
        (InboxKind.INTERRUPT, rows[0].seq),
    ]


async def test_what_is_not_dead_is_not_revived(process: Process, lane: LaneSession) -> None:
    waiting, done = await save_one(process, message()), await save_one(process, message())
    run = await save_one(process, start("o-1"))
    await lane.flush([Commit(shard=ONE, replies=[success(done)])])
    before = await seqs_of(lane)

    asked = [*(each.envelope.request_id for each in (waiting, done, run)), next_id()]
    assert list(await process.storage.revive(asked)) == []
    assert list(await process.storage.revive([])) == []

    assert await seqs_of(lane) == before
    (exit,) = await process.storage.replies([done.envelope.request_id])
    assert exit.kind is ReplyKind.SUCCESS


async def test_a_dead_letter_is_revived_once(process: Process, lane: LaneSession) -> None:
    request = await bury(process, lane, message())
    id = request.envelope.request_id

    first = await process.storage.revive([id, id])
    second = await process.storage.revive([id])

    assert (list(first), list(second)) == ([ONE], [])
    assert ids_of(await sweep_of(lane)) == [id]


async def test_the_shards_of_all_that_were_revived_are_named(
    process: Process, lane: LaneSession
) -> None:
    await lane.acquire([TWO])
    here, there = await bury(process, lane, message()), await save_one(process, message(shard=TWO))
    await lane.flush([Commit(shard=TWO, replies=[defect(there)])])

    asked = [here.envelope.request_id, there.envelope.request_id, next_id()]
    assert set(await process.storage.revive(asked)) == {ONE, TWO}


async def test_an_execution_that_ended_in_a_defect_is_no_dead_letter(
    process: Process, lane: LaneSession
) -> None:
    run = await bury(process, lane, start("o-1"))
    id = run.envelope.request_id
    await lane.flush([update(id, Status.FAILED)])

    assert await dead(process) == []
    assert await dead(process, request_id=id) == []
    assert list(await process.storage.revive([id])) == []

    (exit,) = await process.storage.replies([id])
    assert exit.kind is ReplyKind.DEFECT
    assert await seqs_of(lane) == []


async def test_a_revived_stream_goes_on_behind_its_chunks(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    replies = [chunk(request, 0), chunk(request, 1), defect(request, sequence=2)]
    await lane.flush([Commit(shard=ONE, replies=replies, settled=await seqs_of(lane))])

    await process.storage.revive([request.envelope.request_id])

    stored = await process.storage.replies([request.envelope.request_id])
    assert [reply.kind for reply in stored] == [ReplyKind.CHUNK, ReplyKind.CHUNK]
    assert (await position_of(process, request)).next_sequence == 2


async def test_the_key_of_a_revived_request_stays_taken(
    process: Process, lane: LaneSession
) -> None:
    request = await bury(process, lane, message(key="reserve/1"))
    await process.storage.revive([request.envelope.request_id])

    (again,) = await process.storage.save([message(key="reserve/1")])

    assert (again.outcome, again.request_id) == (SaveOutcome.EXISTS, request.envelope.request_id)
