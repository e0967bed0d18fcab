"""Failed deliveries as ``storage.protocol`` has them, asked of both storages: what an owner counts,
and what the next one counts of an owner that was lost."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from engine.core.envelope import ReplyTo
from engine.core.ids import ShardId, Snowflake, entity_key
from engine.core.status import Status
from engine.storage.protocol import (
    SUSPECT,
    BadBatch,
    Commit,
    InboxKind,
    LaneSession,
    SaveRequest,
    StoredExecution,
    Verdict,
)
from tests.eventually import eventually
from tests.storage.world import (
    ONE,
    TWO,
    Process,
    World,
    event,
    failures_of,
    ids_of,
    interrupt,
    message,
    next_id,
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


async def test_what_was_beside_a_trial_is_blamed_until_it_is_suspect_too(
    world: World, process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    beside, tried, suspect = await save_many(process, 3)
    seqs = await seqs_of(lane)
    await fail(lane, seqs[2:], SUSPECT)
    await lane.flush([Commit(shard=ONE, tried=[seqs[2]])])

    successor = await take_over(world, lane)

    failures = await failures_of(successor)
    assert [failures[id] for id in (beside, tried, suspect)] == [1, SUSPECT + 1, SUSPECT]
    assert (await execution_of(process, run)).failures == 1
    assert await trials_of(successor) == [False] * 4


async def test_a_trial_clears_nobody_on_another_shard(
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
    run, beside = await save_one(process, start("o-1")), await save_one(process, start("o-2"))
    await lane.flush([Commit(shard=ONE, tried=(await seqs_of(lane))[:1])])
    await accuse(lane, run, Verdict.ON_TRIAL)
    if end == "released":
        await lane.release([ONE])
        _, second = await world.runner_with_lane()
    else:
        lane.terminate()
        second = await process.lane()
        world.stack.push_async_callback(second.close)

    await eventually(lambda: second.acquire([ONE]))
    assert not any(await trials_of(second))

    third = await take_over(world, second)
    failures = await failures_of(third)
    assert (failures[tried], failures[other]) == (1, 1)
    for each in (run, beside):
        assert (await execution_of(process, each)).failures == 1


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


async def accuse(lane: LaneSession, request: SaveRequest, verdict: Verdict) -> None:
    """What the owner of an execution thinks of it."""
    judged = update(request.envelope.request_id, Status.RUNNING)
    assert judged.execution is not None
    judged.execution = replace(judged.execution, verdict=verdict)
    await lane.flush([judged])


async def test_a_suspected_execution_is_blamed_for_nothing_but_its_trial(
    world: World, process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    for _ in range(SUSPECT + 1):
        lane = await take_over(world, lane)
    assert (await execution_of(process, run)).failures == SUSPECT

    await accuse(lane, run, Verdict.ON_TRIAL)
    lane = await take_over(world, lane)
    assert (await execution_of(process, run)).failures == SUSPECT + 1

    await take_over(world, lane)
    assert (await execution_of(process, run)).failures == SUSPECT + 1


async def test_what_was_beside_an_execution_on_trial_is_blamed_too(
    world: World, process: Process, lane: LaneSession
) -> None:
    tried, beside = await save_one(process, start("o-1")), await save_one(process, start("o-2"))
    (message_beside,) = await save_many(process, 1)
    await accuse(lane, tried, Verdict.ON_TRIAL)

    successor = await take_over(world, lane)

    assert (await execution_of(process, tried)).failures == 1
    assert (await execution_of(process, beside)).failures == 1
    assert (await failures_of(successor))[message_beside] == 1


async def test_an_execution_that_was_acquitted_has_not_failed(
    world: World, process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    (beside,) = await save_many(process, 1)
    second = await take_over(world, lane)
    await accuse(second, run, Verdict.ON_TRIAL)
    await accuse(second, run, Verdict.OPEN)
    assert (await execution_of(process, run)).failures == 1

    await accuse(second, run, Verdict.ACQUITTED)

    assert (await execution_of(process, run)).failures == 0
    third = await take_over(world, second)
    assert (await execution_of(process, run)).failures == 1
    assert (await failures_of(third))[beside] == 2


async def test_the_trial_of_an_execution_that_nobody_runs_shields_nobody(
    world: World, process: Process, lane: LaneSession
) -> None:
    done = await save_one(process, start("o-1"))
    (beside,) = await save_many(process, 1)
    await accuse(lane, done, Verdict.ON_TRIAL)
    await lane.flush([update(done.envelope.request_id, Status.TERMINATED)])

    successor = await take_over(world, lane)

    assert (await execution_of(process, done)).failures == 0
    assert (await failures_of(successor))[beside] == 1


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
