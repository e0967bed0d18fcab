"""What ``storage.protocol`` promises, stated once and asked of both storages.

Streams, interrupts, failures, states, schedules and volatile messages have modules of their own.
"""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest

from engine.core.clock import SystemClock
from engine.core.envelope import EnvelopeRequest, ReplyTo, Uninterruptible
from engine.core.errors import (
    ConfigurationError,
    ErrorDetails,
    InvalidPayload,
    OwnershipLost,
    StorageUnavailable,
)
from engine.core.ids import EntityAddress, EntityId, EntityType, RunnerId, ShardId, Snowflake
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.reply import Failure, ReplyKind
from engine.core.status import Status
from engine.storage.protocol import (
    BadBatch,
    Commit,
    ExecutionFilter,
    ExecutionUpdate,
    Fence,
    InboxKind,
    LaneSession,
    RunnerLoad,
    RunnerRow,
    SaveOutcome,
    SaveRequest,
    exit_reply,
)
from engine.storage.transaction import Transaction
from tests.eventually import eventually
from tests.storage.world import (
    NOW,
    ONE,
    THREE,
    TWO,
    Ear,
    Process,
    World,
    chunk,
    event,
    ids_of,
    listening,
    message,
    next_id,
    run_key,
    save_one,
    seqs_of,
    start,
    step,
    success,
    sweep_of,
    update,
)

HOUR = timedelta(hours=1)


# --- save -----------------------------------------------------------------------------------------


async def test_a_saved_request_is_stored_as_it_was(process: Process) -> None:
    asked = EnvelopeRequest(
        request_id=next_id(),
        address=EntityAddress(TWO, EntityType("Stock"), EntityId("sku/ä ☃")),
        tag="reserve",
        payload=b"\x00\xff not json",
        headers={"tenant": "blue", "näme": "☃"},
        trace="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        uninterruptible=Uninterruptible.BOTH,
        deliver_at=NOW + timedelta(microseconds=1),
        key="rpc/Stock.reserve/once",
        reply_to=ReplyTo(execution=next_id(), shard=THREE),
    )

    (saved,) = await process.storage.save([SaveRequest(envelope=asked)])

    assert saved.outcome is SaveOutcome.CREATED
    assert saved.request_id == asked.request_id
    assert saved.seq is not None
    assert await process.storage.request(asked.request_id) == asked


async def test_a_request_nobody_saved_is_none(process: Process) -> None:
    assert await process.storage.request(next_id()) is None


async def test_saving_nothing_answers_nothing(process: Process) -> None:
    assert list(await process.storage.save([])) == []


async def test_a_key_is_stored_once_and_answers_with_what_is_stored(process: Process) -> None:
    first = await save_one(process, message(key="k", payload=b"one"))

    (again,) = await process.storage.save([message(key="k", payload=b"two")])

    assert again.outcome is SaveOutcome.EXISTS
    assert again.request_id == first.envelope.request_id
    assert again.payload == b"one"


async def test_a_request_without_key_is_stored_once_by_its_id(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message(payload=b"one"))

    (again,) = await process.storage.save([request])

    assert (again.outcome, again.request_id) == (SaveOutcome.EXISTS, request.envelope.request_id)
    assert again.payload == b"one"
    assert ids_of(await sweep_of(lane)) == [request.envelope.request_id]


async def test_the_same_save_run_again_changes_nothing(process: Process, lane: LaneSession) -> None:
    requests = [message(), message(key="k"), start("o-1")]
    await process.storage.save(requests)

    again = await process.storage.save(requests)

    assert [each.outcome for each in again] == [SaveOutcome.EXISTS] * 3
    assert [each.request_id for each in again] == [r.envelope.request_id for r in requests]
    assert len((await sweep_of(lane)).rows) == 3


async def test_a_key_repeated_in_one_batch_is_stored_once(
    process: Process, lane: LaneSession
) -> None:
    first, second, other = message(key="k", payload=b"1"), message(key="k"), message(key="l")

    saved = await process.storage.save([first, second, other])

    assert sorted(each.outcome.value for each in saved) == ["created", "created", "exists"]
    assert saved[0].request_id == saved[1].request_id
    assert saved[2].outcome is SaveOutcome.CREATED
    assert len((await sweep_of(lane)).rows) == 2


async def test_a_request_repeated_in_one_batch_is_stored_once(
    process: Process, lane: LaneSession
) -> None:
    plain, keyed = message(), message(key="k")

    saved = await process.storage.save([plain, keyed, plain, keyed])

    assert [each.outcome for each in saved[:2]] == [SaveOutcome.CREATED] * 2
    assert [each.outcome for each in saved[2:]] == [SaveOutcome.EXISTS] * 2
    assert len((await sweep_of(lane)).rows) == 2


async def test_of_many_processes_that_save_one_key_one_creates_it(
    world: World, lane: LaneSession
) -> None:
    processes = [await world.process() for _ in range(4)]

    answers = await asyncio.gather(
        *(each.storage.save([message(key="k"), message()]) for each in processes * 5)
    )

    outcomes = [saved[0].outcome for saved in answers]
    assert outcomes.count(SaveOutcome.CREATED) == 1
    assert outcomes.count(SaveOutcome.EXISTS) == 19
    assert len({saved[0].request_id for saved in answers}) == 1
    assert len((await sweep_of(lane)).rows) == 21


async def test_requests_are_stored_until_they_are_pruned(process: Process) -> None:
    one, two = start("a"), message()
    await process.storage.save([one, two])
    ids = [one.envelope.request_id, two.envelope.request_id]

    assert set(await process.storage.stored([*ids, next_id()])) == set(ids)
    assert not await process.storage.stored([])


async def test_keys_that_were_stored_are_known(process: Process, lane: LaneSession) -> None:
    await process.storage.save([message(key="tell/a/1")])
    await lane.flush([Commit(shard=ONE, requests=[message(key="tell/b/1"), message()])])

    assert set(await process.storage.known(["tell/b/1", "tell/c/1", "tell/a/1"])) == {
        "tell/a/1",
        "tell/b/1",
    }
    assert not await process.storage.known([])


async def test_keys_that_differ_only_in_case_or_accent_are_different(process: Process) -> None:
    saved = await process.storage.save([message(key=key) for key in ("k", "K", "ḱ", "k ")])

    assert {each.outcome for each in saved} == {SaveOutcome.CREATED}


async def test_a_request_that_cannot_be_stored_spoils_nothing(
    process: Process, lane: LaneSession
) -> None:
    for hostile in ("nul \0", "surrogate \ud800"):
        with pytest.raises(InvalidPayload):
            await process.storage.save([message(), message(entity=hostile)])

    assert (await sweep_of(lane)).rows == []


async def test_a_shard_group_nobody_created_is_a_configuration_error(process: Process) -> None:
    with pytest.raises(ConfigurationError, match="elsewhere"):
        await process.storage.save([message(shard=ShardId("elsewhere", 1))])


# --- executions and their events ------------------------------------------------------------------


async def test_a_start_makes_an_execution(process: Process) -> None:
    parent = next_id()
    request = start("o-1", shard=TWO, version=3, attributes=b'{"tenant": "blue"}', parent=parent)
    before = SystemClock().now() - timedelta(seconds=5)

    await save_one(process, request)

    found = await process.storage.find("Fulfil", "o-1")
    assert found is not None
    assert found.request_id == request.envelope.request_id
    assert (found.workflow, found.execution_id, found.shard) == ("Fulfil", "o-1", TWO)
    assert (found.status, found.run, found.version) == (Status.SCHEDULED, 1, 3)
    assert found.parent == parent
    assert json.loads(found.attributes or b"") == {"tenant": "blue"}
    assert before < found.created_at < before + timedelta(seconds=30)
    assert found.started_at is found.finished_at is found.wake_at is found.waiting is None
    assert found.runner is None


async def test_find_knows_neither_other_workflows_nor_other_ids(process: Process) -> None:
    await save_one(process, start("o-1"))

    assert await process.storage.find("Fulfil", "o-2") is None
    assert await process.storage.find("Refund", "o-1") is None


async def test_an_event_goes_to_its_execution(process: Process, lane: LaneSession) -> None:
    run = await save_one(process, start("o-1"))
    signal = await save_one(process, event("o-1"))

    first, second = (await sweep_of(lane)).rows

    assert (first.execution, second.execution) == (run.envelope.request_id,) * 2
    assert (first.envelope, second.envelope) == (run.envelope, signal.envelope)
    assert first.state == second.state == await process.storage.find("Fulfil", "o-1")
    assert second.state is not None
    assert second.state.runner == process.runner


async def test_an_event_of_an_unknown_execution_is_not_stored(
    process: Process, lane: LaneSession
) -> None:
    request = event("nobody", key="k")

    (saved,) = await process.storage.save([request])

    assert saved.outcome is SaveOutcome.NO_TARGET
    assert await process.storage.request(request.envelope.request_id) is None
    assert (await sweep_of(lane)).rows == []


async def test_an_event_of_a_finished_execution_is_not_stored(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    await lane.flush([update(run.envelope.request_id, Status.SUCCEEDED)])

    (saved,) = await process.storage.save([event("o-1", key="k")])

    assert saved.outcome is SaveOutcome.TARGET_FINISHED
    assert len((await sweep_of(lane)).rows) == 1


async def test_an_event_that_was_stored_exists_even_when_its_target_has_finished(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    signal = await save_one(process, event("o-1", key="k"))
    await lane.flush([update(run.envelope.request_id, Status.SUCCEEDED)])

    (saved,) = await process.storage.save([signal])

    assert saved.outcome is SaveOutcome.EXISTS
    assert saved.request_id == signal.envelope.request_id


async def test_a_refused_event_leaves_its_key_free(process: Process) -> None:
    await process.storage.save([event("o-1", key="k")])
    await save_one(process, start("o-1"))

    (saved,) = await process.storage.save([event("o-1", key="k")])

    assert saved.outcome is SaveOutcome.CREATED


@pytest.mark.parametrize("status", [s for s in Status if not s.finished], ids=str)
async def test_an_execution_that_has_not_finished_takes_events(
    process: Process, lane: LaneSession, status: Status
) -> None:
    run = await save_one(process, start("o-1"))
    await lane.flush([update(run.envelope.request_id, status)])

    await save_one(process, event("o-1"))

    assert await process.storage.waiting_rows(run.envelope.request_id) == 2


async def test_waiting_rows_counts_what_an_execution_has_not_taken(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    await process.storage.save([event("o-1"), event("o-1"), start("o-2"), message()])
    assert await process.storage.waiting_rows(run.envelope.request_id) == 3

    await lane.flush([Commit(shard=ONE, settled=(await seqs_of(lane))[:2])])

    assert await process.storage.waiting_rows(run.envelope.request_id) == 1
    assert await process.storage.waiting_rows(next_id()) == 0


# --- sweep ----------------------------------------------------------------------------------------


async def test_a_sweep_gives_a_shards_rows_in_the_order_they_were_stored(
    process: Process, lane: LaneSession
) -> None:
    late_id, early_id = Snowflake(next_id() + (1 << 40)), next_id()
    requests = [message(id=late_id), message(id=early_id), message(shard=TWO), message()]
    saved = await process.storage.save(requests[:3])
    saved = [*saved, *await process.storage.save(requests[3:])]

    swept = await sweep_of(lane)

    ours = [0, 1, 3]
    assert ids_of(swept) == [requests[i].envelope.request_id for i in ours]
    assert [row.seq for row in swept.rows] == [saved[i].seq for i in ours]
    assert [row.seq for row in swept.rows] == sorted(row.seq for row in swept.rows)
    assert {row.shard for row in swept.rows} == {ONE}
    assert {row.kind for row in swept.rows} == {InboxKind.REQUEST}
    assert {(row.execution, row.state, row.reply) for row in swept.rows} == {(None, None, None)}
    assert (swept.due, swept.next_due, swept.more) == ([], None, False)


async def test_a_sweep_of_several_shards_merges_them_by_age(
    process: Process, lane: LaneSession
) -> None:
    await lane.acquire([TWO, THREE])
    requests = [message(shard=shard) for shard in (TWO, ONE, THREE, ONE, TWO)]
    await process.storage.save(requests)

    swept = await sweep_of(lane, ONE, TWO, THREE)

    assert ids_of(swept) == [request.envelope.request_id for request in requests]
    assert [row.shard for row in swept.rows] == [TWO, ONE, THREE, ONE, TWO]


async def test_a_sweep_leaves_out_what_is_in_flight(process: Process, lane: LaneSession) -> None:
    saved = await process.storage.save([message() for _ in range(4)])
    seqs = [each.seq or 0 for each in saved]

    swept = await sweep_of(lane, in_flight=(seqs[0], seqs[2]))

    assert [row.seq for row in swept.rows] == [seqs[1], seqs[3]]


async def test_a_sweep_that_reaches_its_limit_says_that_there_is_more(
    process: Process, lane: LaneSession
) -> None:
    saved = await process.storage.save([message() for _ in range(5)])
    seqs = [each.seq or 0 for each in saved]

    first = await sweep_of(lane, limit=2)
    second = await sweep_of(lane, limit=2, in_flight=tuple(seqs[:2]))
    third = await sweep_of(lane, limit=2, in_flight=tuple(seqs[:4]))

    assert [row.seq for row in first.rows] == seqs[:2]
    assert [row.seq for row in second.rows] == seqs[2:4]
    assert [row.seq for row in third.rows] == seqs[4:]
    assert (first.more, second.more, third.more) == (True, True, False)


async def test_rows_that_are_not_due_are_not_delivered_and_do_not_fill_the_limit(
    process: Process, lane: LaneSession
) -> None:
    now = SystemClock().now()
    later = [message(deliver_at=now + HOUR * (9 - hours)) for hours in range(5)]
    due = [message(deliver_at=now - HOUR), message()]
    await process.storage.save([*later, *due])

    swept = await sweep_of(lane, limit=2)

    assert ids_of(swept) == [request.envelope.request_id for request in due]
    assert not swept.more
    assert swept.next_due == now + HOUR * 5


async def test_a_row_is_delivered_once_it_is_due_in_its_old_place(
    process: Process, lane: LaneSession
) -> None:
    deliver_at = SystemClock().now() + timedelta(seconds=0.3)
    delayed, other = message(deliver_at=deliver_at), message()
    await process.storage.save([delayed, other])
    assert ids_of(await sweep_of(lane)) == [other.envelope.request_id]

    async def both() -> bool:
        return len((await sweep_of(lane)).rows) == 2

    await eventually(both)

    swept = await sweep_of(lane)
    assert ids_of(swept) == [delayed.envelope.request_id, other.envelope.request_id]
    assert swept.now >= deliver_at
    assert swept.next_due is None


async def test_a_sweep_names_sleepers_that_are_due_or_will_be_within_the_horizon(
    process: Process, lane: LaneSession
) -> None:
    now = SystemClock().now()
    runs = [await save_one(process, start(f"o-{number}")) for number in range(5)]
    ids = [run.envelope.request_id for run in runs]
    times = [now + HOUR * 3, now - HOUR, now + timedelta(seconds=30), now - HOUR * 2, None]
    await lane.flush(
        [update(id, Status.SUSPENDED, wake_at=at) for id, at in zip(ids, times, strict=True)]
    )

    strict = await sweep_of(lane)
    wide = await sweep_of(lane, horizon=timedelta(minutes=1), resident=(ids[3],))

    assert list(strict.due) == [ids[3], ids[1]]
    assert strict.next_due == times[2]
    assert list(wide.due) == [ids[1], ids[2]]
    assert wide.next_due == times[0]


async def test_many_sleepers_due_at_once_come_in_parts(process: Process, lane: LaneSession) -> None:
    now = SystemClock().now()
    runs = [await save_one(process, start(f"o-{number}")) for number in range(5)]
    ids = [run.envelope.request_id for run in runs]
    await lane.flush([update(id, Status.SUSPENDED, wake_at=now - HOUR) for id in ids])

    first = await sweep_of(lane, limit=3, in_flight=tuple(await seqs_of(lane)))
    rest = await sweep_of(lane, limit=3, resident=tuple(first.due))

    assert len(first.due) == 3
    assert first.more
    assert sorted([*first.due, *rest.due]) == ids


async def test_sleepers_of_other_shards_are_not_named(world: World, lane: LaneSession) -> None:
    other = await world.process()
    second = await other.lane()
    await second.acquire([TWO])
    run = await save_one(other, start("o-1", shard=TWO))
    wake_at = SystemClock().now() - HOUR
    commit = update(run.envelope.request_id, Status.SUSPENDED, wake_at=wake_at)
    await second.flush([replace(commit, shard=TWO)])

    assert list((await sweep_of(lane)).due) == []
    assert list((await sweep_of(second, TWO)).due) == [run.envelope.request_id]
    await second.close()


# --- acquire and release --------------------------------------------------------------------------


async def test_a_shard_has_one_owner(world: World, lane: LaneSession) -> None:
    _, rival = await world.runner_with_lane()

    assert await rival.acquire([ONE, TWO]) == {TWO: 1}


async def test_of_many_that_acquire_at_once_each_shard_goes_to_one(world: World) -> None:
    shards = [ShardId("default", number) for number in range(1, 13)]
    lanes = [(await world.runner_with_lane())[1] for _ in range(4)]

    taken = await asyncio.gather(*(lane.acquire(shards) for lane in lanes))

    owned = [shard for each in taken for shard in each]
    assert len(owned) == len(set(owned))
    missed = [shard for shard in shards if shard not in owned]
    # All may have met another's lock that was given back: whoever asks again gets it.
    assert set(await lanes[0].acquire(missed)) == set(missed)


async def test_each_acquisition_begins_a_new_epoch(world: World, process: Process) -> None:
    epochs: list[int] = []
    for _ in range(3):
        _, lane = await world.runner_with_lane()
        epochs.append((await lane.acquire([ONE]))[ONE])
        await lane.release([ONE])

    assert epochs == [1, 2, 3]


async def test_shards_are_seen_with_their_owner_and_epoch(
    process: Process, lane: LaneSession
) -> None:
    await lane.acquire([TWO])
    await lane.release([TWO])

    rows = {row.shard: row for row in await process.storage.shards()}

    assert len(rows) == process.storage.shards_in("default") == 12
    assert (rows[ONE].epoch, rows[ONE].runner) == (1, process.runner)
    assert rows[ONE].acquired_at is not None
    assert (rows[TWO].epoch, rows[TWO].runner) == (1, None)
    assert (rows[THREE].epoch, rows[THREE].runner) == (0, None)


async def test_a_released_shard_is_free_with_its_rows(world: World, lane: LaneSession) -> None:
    process, rival = await world.runner_with_lane()
    request = await save_one(process, message())

    await lane.release([ONE])

    assert await rival.acquire([ONE]) == {ONE: 2}
    assert ids_of(await sweep_of(rival)) == [request.envelope.request_id]


async def test_what_a_lane_holds_is_not_given_to_it_twice(lane: LaneSession) -> None:
    assert await lane.acquire([ONE]) == {}

    await lane.release([ONE])

    assert await lane.acquire([ONE]) == {ONE: 2}


@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_locks_go_with_their_session(world: World, lane: LaneSession, end: str) -> None:
    _, rival = await world.runner_with_lane()
    if end == "close":
        await lane.close()
    else:
        lane.terminate()

    async def taken() -> bool:
        return await rival.acquire([ONE]) == {ONE: 2}

    await eventually(taken)


async def test_a_session_that_has_ended_refuses_everything(lane: LaneSession) -> None:
    lane.terminate()

    assert lane.closed
    with pytest.raises(StorageUnavailable):
        await lane.acquire([TWO])
    with pytest.raises(StorageUnavailable):
        await lane.flush([Commit(shard=ONE, journal=[step(next_id(), 1)])])
    with pytest.raises(StorageUnavailable):
        await sweep_of(lane)


@pytest.mark.parametrize("end", ["close", "terminate"])
async def test_the_end_of_a_session_calls_back_once_and_not_at_once(
    lane: LaneSession, end: str
) -> None:
    calls: list[str] = []
    lane.on_close(lambda: calls.append("ended"))

    if end == "close":
        await lane.close()
    else:
        lane.terminate()
        assert calls == []
    await eventually(lambda: calls)
    lane.terminate()
    await asyncio.sleep(0)

    assert calls == ["ended"]


async def test_a_callback_on_a_session_that_has_ended_still_comes(lane: LaneSession) -> None:
    calls: list[str] = []
    lane.terminate()

    lane.on_close(lambda: calls.append("ended"))

    await eventually(lambda: calls)


async def test_a_runner_that_never_registered_gets_no_shards(world: World) -> None:
    stranger = await world.process(register=False)
    lane = await stranger.lane()

    assert await lane.acquire([ONE]) == {}

    await lane.close()


# --- flush ----------------------------------------------------------------------------------------


async def test_a_flush_writes_everything_it_holds(process: Process, lane: LaneSession) -> None:
    run = await save_one(process, start("o-1"))
    id = run.envelope.request_id
    follow_up = message(shard=TWO)
    commit = replace(
        update(id, Status.SUCCEEDED, started_at=NOW, finished_at=NOW + HOUR),
        journal=[step(id, 1, payload=b"a"), step(id, 2, payload=b"b")],
        replies=[success(run, b'"done"')],
        requests=[follow_up],
        settled=await seqs_of(lane),
    )

    flushed = await lane.flush([commit])

    assert flushed.requests[follow_up.envelope.request_id].outcome is SaveOutcome.CREATED
    assert flushed.replies == {}
    assert list(await process.storage.history(id)) == commit.journal
    assert [reply.payload for reply in await process.storage.replies([id])] == [b'"done"']
    assert await process.storage.request(follow_up.envelope.request_id) == follow_up.envelope
    assert (await sweep_of(lane)).rows == []
    found = await process.storage.find("Fulfil", "o-1")
    assert found is not None
    assert (found.status, found.started_at, found.finished_at) == (
        Status.SUCCEEDED,
        NOW,
        NOW + HOUR,
    )


async def test_a_journal_row_is_stored_as_it_was(process: Process, lane: LaneSession) -> None:
    row = JournalRow(
        execution=next_id(),
        run=2,
        position=7,
        kind=JournalKind.ATTEMPT,
        name="charge ☃",
        ordinal=3,
        at=NOW + timedelta(microseconds=1),
        attempt=4,
        outcome=Outcome.TIMED_OUT,
        digest=-(1 << 63),
        started_at=NOW,
        due_at=NOW + HOUR,
        source=next_id(),
        payload=b"\x00\xff",
    )

    await lane.flush([Commit(shard=ONE, journal=[row])])

    assert list(await process.storage.history(row.execution)) == [row]


async def test_an_empty_flush_is_allowed(lane: LaneSession) -> None:
    flushed = await lane.flush([])

    assert (flushed.requests, flushed.replies) == ({}, {})
    assert (await lane.flush([Commit(shard=ONE)])).requests == {}


async def test_one_bad_commit_leaves_nothing_of_its_batch(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    id = run.envelope.request_id
    await lane.flush([Commit(shard=ONE, journal=[step(id, 1)])])
    follow_up = message()
    good = replace(
        update(id, Status.FAILED),
        journal=[step(id, 2)],
        replies=[success(run)],
        requests=[follow_up],
        settled=await seqs_of(lane),
    )

    with pytest.raises(BadBatch):
        await lane.flush([good, Commit(shard=ONE, journal=[step(id, 1)])])

    assert not lane.closed
    assert [row.position for row in await process.storage.history(id)] == [1]
    assert list(await process.storage.replies([id])) == []
    assert await process.storage.request(follow_up.envelope.request_id) is None
    assert ids_of(await sweep_of(lane)) == [id]
    found = await process.storage.find("Fulfil", "o-1")
    assert found is not None
    assert found.status is Status.SCHEDULED


async def test_two_journal_rows_of_one_position_are_a_bad_batch(
    process: Process, lane: LaneSession
) -> None:
    id = next_id()

    with pytest.raises(BadBatch) as refused:
        await lane.flush([Commit(shard=ONE, journal=[step(id, 1), step(id, 1)])])

    assert not refused.value.transient
    assert list(await process.storage.history(id)) == []


async def test_positions_may_have_gaps_and_runs_have_positions_of_their_own(
    process: Process, lane: LaneSession
) -> None:
    id = next_id()
    rows = [step(id, 4, run=2), step(id, 9), step(id, 4)]

    await lane.flush([Commit(shard=ONE, journal=rows)])

    history = await process.storage.history(id)
    assert [(row.run, row.position) for row in history] == [(1, 4), (1, 9), (2, 4)]


async def test_settling_what_is_not_there_is_harmless(process: Process, lane: LaneSession) -> None:
    request = await save_one(process, message())

    await lane.flush([Commit(shard=ONE, settled=[1 << 40])])

    assert ids_of(await sweep_of(lane)) == [request.envelope.request_id]


async def test_settling_takes_rows_of_the_commits_own_shard_only(
    process: Process, lane: LaneSession
) -> None:
    await lane.acquire([TWO])
    (saved,) = await process.storage.save([message(shard=TWO)])

    await lane.flush([Commit(shard=ONE, settled=[saved.seq or 0])])

    assert len((await sweep_of(lane, TWO)).rows) == 1


async def test_rows_that_were_not_due_can_be_settled(process: Process, lane: LaneSession) -> None:
    later = SystemClock().now() + HOUR
    saved = await process.storage.save([message(deliver_at=later), message(deliver_at=later)])

    await lane.flush([Commit(shard=ONE, settled=[each.seq or 0 for each in saved])])

    assert (await sweep_of(lane)).next_due is None


# --- replies --------------------------------------------------------------------------------------


async def test_replies_come_by_request_with_chunks_in_sequence_and_the_exit_last(
    process: Process, lane: LaneSession
) -> None:
    first, second, silent = message(), message(), message()
    await process.storage.save([first, second, silent])
    await lane.flush([Commit(shard=ONE, replies=[chunk(first, 1), chunk(first, 0)])])
    await lane.flush(
        [Commit(shard=ONE, replies=[success(second), success(first, b"end", sequence=2)])]
    )

    stored = await process.storage.replies(
        [request.envelope.request_id for request in (second, silent, first)]
    )

    assert [(reply.request_id, reply.sequence, reply.kind) for reply in stored] == [
        (first.envelope.request_id, 0, ReplyKind.CHUNK),
        (first.envelope.request_id, 1, ReplyKind.CHUNK),
        (first.envelope.request_id, 2, ReplyKind.SUCCESS),
        (second.envelope.request_id, 0, ReplyKind.SUCCESS),
    ]
    assert stored[2].payload == b"end"


async def test_the_first_exit_is_the_exit(process: Process, lane: LaneSession) -> None:
    request = await save_one(process, message())
    await lane.flush([Commit(shard=ONE, replies=[success(request, b"first", sequence=1)])])

    await lane.flush([Commit(shard=ONE, replies=[success(request, b"same sequence", sequence=1)])])
    await lane.flush([Commit(shard=ONE, replies=[success(request, b"another", sequence=2)])])

    stored = await process.storage.replies([request.envelope.request_id])
    assert [reply.payload for reply in stored] == [b"first"]


async def test_of_two_exits_in_one_flush_the_first_is_the_exit(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    one = Commit(shard=ONE, replies=[success(request, b"first", sequence=0)])
    two = Commit(shard=ONE, replies=[success(request, b"second", sequence=1)])

    await lane.flush([one, two])

    stored = await process.storage.replies([request.envelope.request_id])
    assert [reply.payload for reply in stored] == [b"first"]


async def test_a_chunk_that_is_stored_is_not_replaced(process: Process, lane: LaneSession) -> None:
    request = await save_one(process, message())
    await lane.flush([Commit(shard=ONE, replies=[chunk(request, 0, b"first")])])

    await lane.flush([Commit(shard=ONE, replies=[chunk(request, 0, b"again"), chunk(request, 1)])])

    stored = await process.storage.replies([request.envelope.request_id])
    assert [reply.payload for reply in stored] == [b"first", b"0"]


async def test_an_exit_with_reply_to_is_put_into_that_executions_inbox(
    process: Process, lane: LaneSession
) -> None:
    await lane.acquire([TWO])
    run = await save_one(process, start("o-1", shard=TWO))
    reply_to = ReplyTo(execution=run.envelope.request_id, shard=TWO)
    request = await save_one(process, message(reply_to=reply_to))

    flushed = await lane.flush(
        [Commit(shard=ONE, replies=[success(request, b"42", reply_to=reply_to)])]
    )

    _, row = (await sweep_of(lane, TWO)).rows
    assert flushed.replies == {request.envelope.request_id: row.seq}
    assert (row.kind, row.shard, row.execution) == (
        InboxKind.REPLY,
        TWO,
        run.envelope.request_id,
    )
    assert row.envelope == request.envelope
    assert row.state is not None
    assert row.state.execution_id == "o-1"
    assert row.reply is not None
    assert (row.reply.kind, row.reply.payload) == (ReplyKind.SUCCESS, b"42")
    assert await process.storage.waiting_rows(run.envelope.request_id) == 2


async def test_a_reply_row_is_put_only_for_the_exit_that_was_stored(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    reply_to = ReplyTo(execution=run.envelope.request_id, shard=ONE)
    request = await save_one(process, message(shard=TWO, reply_to=reply_to))
    await lane.flush([Commit(shard=ONE, replies=[success(request, reply_to=reply_to)])])

    flushed = await lane.flush(
        [
            Commit(shard=ONE, replies=[success(request, sequence=0, reply_to=reply_to)]),
            Commit(shard=ONE, replies=[success(request, sequence=5, reply_to=reply_to)]),
        ]
    )

    assert flushed.replies == {}
    kinds = [row.kind for row in (await sweep_of(lane)).rows]
    assert kinds == [InboxKind.REQUEST, InboxKind.REPLY]


async def test_chunks_put_no_reply_row(process: Process, lane: LaneSession) -> None:
    run = await save_one(process, start("o-1"))
    reply_to = ReplyTo(execution=run.envelope.request_id, shard=ONE)
    request = await save_one(process, message(shard=TWO, reply_to=reply_to))

    flushed = await lane.flush(
        [Commit(shard=ONE, replies=[replace(chunk(request, 0), reply_to=reply_to)])]
    )

    assert flushed.replies == {}
    assert len((await sweep_of(lane)).rows) == 1


# --- follow-up requests ---------------------------------------------------------------------------


async def test_follow_ups_are_delivered_in_the_order_asked(
    process: Process, lane: LaneSession
) -> None:
    requests = [message(key=key) for key in ("z", None, "a", "m", None)]

    flushed = await lane.flush(
        [Commit(shard=ONE, requests=requests[:3]), Commit(shard=ONE, requests=requests[3:])]
    )

    ids = [request.envelope.request_id for request in requests]
    assert ids_of(await sweep_of(lane)) == ids
    assert [flushed.requests[id].seq for id in ids] == await seqs_of(lane)


async def test_a_follow_up_whose_key_is_taken_finds_what_is_stored(
    process: Process, lane: LaneSession
) -> None:
    stored = await save_one(process, message(key="k", payload=b"stored"))
    again, one, two = message(key="k"), message(key="l", payload=b"l"), message(key="l")

    flushed = await lane.flush(
        [Commit(shard=ONE, requests=[again, one]), Commit(shard=ONE, requests=[two])]
    )

    found = flushed.requests[again.envelope.request_id]
    assert (found.outcome, found.payload) == (SaveOutcome.EXISTS, b"stored")
    assert found.request_id == stored.envelope.request_id
    twins = [flushed.requests[each.envelope.request_id] for each in (one, two)]
    assert {twin.outcome for twin in twins} == {SaveOutcome.CREATED, SaveOutcome.EXISTS}
    assert twins[0].request_id == twins[1].request_id
    assert len((await sweep_of(lane)).rows) == 2


async def test_a_follow_up_may_start_a_child_and_signal_an_execution(
    process: Process, lane: LaneSession
) -> None:
    parent = await save_one(process, start("parent"))
    id = parent.envelope.request_id
    child, signal, lost = start("child", parent=id), event("parent"), event("nobody")

    flushed = await lane.flush([Commit(shard=ONE, requests=[child, signal, lost])])

    outcomes = [
        flushed.requests[each.envelope.request_id].outcome for each in (child, signal, lost)
    ]
    assert outcomes == [SaveOutcome.CREATED, SaveOutcome.CREATED, SaveOutcome.NO_TARGET]
    found = await process.storage.find("Fulfil", "child")
    assert found is not None
    assert found.parent == id
    assert await process.storage.waiting_rows(id) == 2


# --- execution rows -------------------------------------------------------------------------------


async def test_an_update_keeps_the_start_and_replaces_the_rest(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    id = run.envelope.request_id
    await lane.flush([update(id, Status.RUNNING, started_at=NOW)])
    await lane.flush(
        [
            update(
                id,
                Status.SUSPENDED,
                started_at=NOW + HOUR,
                wake_at=NOW + HOUR,
                waiting="a timer",
            )
        ]
    )
    asleep = await process.storage.find("Fulfil", "o-1")

    await lane.flush([update(id, Status.RUNNING, run=2)])
    awake = await process.storage.find("Fulfil", "o-1")

    assert asleep is not None
    assert (asleep.status, asleep.wake_at, asleep.waiting) == (
        Status.SUSPENDED,
        NOW + HOUR,
        "a timer",
    )
    assert awake is not None
    assert (awake.status, awake.run, awake.started_at) == (Status.RUNNING, 2, NOW)
    assert awake.wake_at is awake.waiting is None


async def test_a_sleeper_that_was_woken_is_due_no_more(process: Process, lane: LaneSession) -> None:
    run = await save_one(process, start("o-1"))
    id = run.envelope.request_id
    past = SystemClock().now() - HOUR
    for wake_at in (past, past - HOUR):
        await lane.flush([update(id, Status.SUSPENDED, wake_at=wake_at)])
    assert list((await sweep_of(lane)).due) == [id]

    await lane.flush([update(id, Status.SUCCEEDED)])

    swept = await sweep_of(lane)
    assert (list(swept.due), swept.next_due) == ([], None)


async def test_an_update_of_an_unknown_execution_is_harmless(lane: LaneSession) -> None:
    await lane.flush([update(next_id(), Status.RUNNING)])


async def test_load_gives_all_a_replay_needs_of_the_current_run(
    process: Process, lane: LaneSession
) -> None:
    one, two = await save_one(process, start("o-1")), await save_one(process, start("o-2"))
    ids = [one.envelope.request_id, two.envelope.request_id]
    journal = [step(ids[0], 2, run=2), step(ids[0], 1, run=2)]
    await lane.flush([Commit(shard=ONE, journal=[step(ids[0], 1), *journal])])
    await lane.flush([update(ids[0], Status.RUNNING, run=2)])

    loaded = {
        each.execution.request_id: each for each in await process.storage.load([*ids, next_id()])
    }

    assert loaded.keys() == set(ids)
    assert loaded[ids[0]].envelope == one.envelope
    assert loaded[ids[0]].execution == await process.storage.find("Fulfil", "o-1")
    assert list(loaded[ids[0]].journal) == [journal[1], journal[0]]
    assert list(loaded[ids[1]].journal) == []


# --- inspection -----------------------------------------------------------------------------------


async def executions_of(
    process: Process, filter: ExecutionFilter, *, limit: int = 100
) -> list[str]:
    found = await process.storage.executions(filter, limit=limit)
    return [each.execution_id for each in found]


async def test_executions_come_youngest_first_in_pages(process: Process) -> None:
    await process.storage.save([start(f"o-{number}") for number in range(5)])

    first = await process.storage.executions(ExecutionFilter(), limit=2)
    second = await process.storage.executions(ExecutionFilter(after=first[-1].request_id), limit=2)
    third = await process.storage.executions(ExecutionFilter(after=second[-1].request_id), limit=2)

    names = [each.execution_id for page in (first, second, third) for each in page]
    assert names == ["o-4", "o-3", "o-2", "o-1", "o-0"]
    assert first[0] == await process.storage.find("Fulfil", "o-4")


async def test_executions_that_start_later_are_told_with_their_time(process: Process) -> None:
    later, now = start("later"), start("now")
    later = replace(later, envelope=replace(later.envelope, deliver_at=NOW))
    await process.storage.save([later, now])

    ids = [each.envelope.request_id for each in (later, now)]
    assert await process.storage.start_times([*ids, next_id()]) == {ids[0]: NOW}


async def test_executions_are_found_by_each_filter(process: Process, lane: LaneSession) -> None:
    parent = next_id()
    runs = [
        start("a", attributes=b'{"tenant": "blue", "tags": ["x", "y"], "size": {"cm": 3}}'),
        start("b", attributes=b'{"tenant": "red", "vip": true}', parent=parent),
        start("c", workflow="Refund"),
        start("d", version=2),
    ]
    await process.storage.save(runs)
    ids = [run.envelope.request_id for run in runs]
    await lane.flush([update(ids[0], Status.FAILED), update(ids[1], Status.RUNNING)])

    async def found(filter: ExecutionFilter) -> str:
        return "".join(reversed(await executions_of(process, filter)))

    assert await found(ExecutionFilter(workflow="Fulfil")) == "abd"
    assert await found(ExecutionFilter(statuses=[Status.FAILED, Status.RUNNING])) == "ab"
    twice = [Status.RUNNING, Status.FAILED, Status.RUNNING]
    assert await found(ExecutionFilter(statuses=twice)) == "ab"
    assert await found(ExecutionFilter(statuses=[Status.SCHEDULED], workflow="Fulfil")) == "d"
    assert await found(ExecutionFilter(parent=parent)) == "b"
    assert await found(ExecutionFilter(version=2)) == "d"
    assert await found(ExecutionFilter(version=1, workflow="Fulfil")) == "ab"
    assert await found(ExecutionFilter(attributes={"tenant": "blue"})) == "a"
    assert await found(ExecutionFilter(attributes={"tags": ["y"], "size": {"cm": 3}})) == "a"
    assert await found(ExecutionFilter(attributes={"vip": True})) == "b"
    assert await found(ExecutionFilter(attributes={"vip": 1})) == ""
    assert await found(ExecutionFilter(attributes={"tenant": "green"})) == ""


async def test_workflows_that_have_executions_are_named_once_with_their_group(
    process: Process,
) -> None:
    await process.storage.ensure_groups(["slow"])
    names = ["Fulfil-x", "Fulfil", "Fulfil.y", "Fulfil0", "Z", "a"]
    slow = ShardId("slow", 1)
    runs = [start(f"{i}/{name}", workflow=name) for name in names for i in range(3)]
    await process.storage.save([message(key="x"), *runs, start("s", workflow="S", shard=slow)])

    assert await process.storage.workflows() == dict.fromkeys(names, "default") | {"S": "slow"}


async def test_executions_are_found_by_when_they_were_started(process: Process) -> None:
    run = await save_one(process, start("o-1"))
    found = await process.storage.find("Fulfil", "o-1")
    assert found is not None
    created = found.created_at

    before = await executions_of(process, ExecutionFilter(started_after=created - HOUR))
    after = await executions_of(process, ExecutionFilter(started_after=created + HOUR))
    early = await executions_of(process, ExecutionFilter(started_before=created))
    late = await executions_of(process, ExecutionFilter(started_before=created + HOUR))

    id = run.envelope.address.entity_id
    assert (before, after, early, late) == ([id], [], [], [id])


async def test_executions_are_found_by_their_error_until_they_go_on(
    process: Process, lane: LaneSession
) -> None:
    one, two = await save_one(process, start("o-1")), await save_one(process, start("o-2"))
    id = one.envelope.request_id
    failed = ExecutionUpdate(request_id=id, run=1, status=Status.FAILED, error="ValueError")
    fine = update(two.envelope.request_id, Status.SUCCEEDED)
    exit = exit_reply(id, Failure(ErrorDetails("ValueError", "no")))
    await lane.flush([Commit(shard=ONE, execution=failed, replies=[exit]), fine])

    found = await executions_of(process, ExecutionFilter(error="ValueError"))
    other = await executions_of(process, ExecutionFilter(error="KeyError"))
    await process.storage.reopen(one.envelope, run=1, journal=[])
    again = await executions_of(process, ExecutionFilter(error="ValueError"))

    assert (found, other, again) == (["o-1"], [], [])


async def test_attributes_are_replaced_by_those_of_an_update_if_it_has_any(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1", attributes=b'{"tenant": "blue"}'))
    id = run.envelope.request_id
    plain = ExecutionUpdate(request_id=id, run=1, status=Status.RUNNING)
    await lane.flush([Commit(shard=ONE, execution=plain)])
    kept = await executions_of(process, ExecutionFilter(attributes={"tenant": "blue"}))
    changed = replace(plain, attributes=b'{"tenant": "red", "size": 3}')
    await lane.flush([Commit(shard=ONE, execution=changed)])
    gone = await executions_of(process, ExecutionFilter(attributes={"tenant": "blue"}))
    found = await executions_of(process, ExecutionFilter(attributes={"size": 3}))

    assert (kept, gone, found) == (["o-1"], [], ["o-1"])


async def test_workflows_that_have_executions_are_named_with_their_group(process: Process) -> None:
    assert dict(await process.storage.workflows()) == {}

    await process.storage.save([start("a"), start("b"), start("c", workflow="Refund"), message()])

    assert dict(await process.storage.workflows()) == {"Fulfil": "default", "Refund": "default"}


async def test_the_history_of_nothing_is_empty(process: Process) -> None:
    assert list(await process.storage.history(next_id())) == []
    assert list(await process.storage.load([])) == []
    assert list(await process.storage.replies([])) == []


# --- the doorbell ---------------------------------------------------------------------------------


async def test_ringing_a_shard_wakes_its_owner_only(world: World) -> None:
    owner, lane = await world.runner_with_lane()
    other, client = await world.process(), await world.process()
    ears = {id(each): Ear() for each in (owner, other)}
    for each in (owner, other):
        each.storage.doorbell.listen(ears[id(each)])
    await eventually(lambda: all(ear.restored for ear in ears.values()))
    await lane.acquire([ONE, TWO])

    client.storage.doorbell.ring_shards([ONE, THREE])

    assert ears[id(owner)].shards == set()
    await eventually(lambda: ears[id(owner)].shards == {ONE})
    assert ears[id(other)].shards == set()


async def test_whoever_begins_to_listen_is_told_when_rings_begin_to_arrive(world: World) -> None:
    process, ear = await world.process(), Ear()

    process.storage.doorbell.listen(ear)

    assert ear.restored == 0
    await eventually(lambda: ear.restored == 1 and process.storage.doorbell.healthy)


async def test_ringing_the_topology_wakes_everybody(world: World) -> None:
    processes = [await world.process() for _ in range(3)]
    ears = [Ear() for _ in processes]
    for process, ear in zip(processes, ears, strict=True):
        process.storage.doorbell.listen(ear)
    await eventually(lambda: all(process.storage.doorbell.healthy for process in processes))

    processes[0].storage.doorbell.ring_topology()

    assert ears[1].topology == 0
    await eventually(lambda: ears[1].topology and ears[2].topology)


@pytest.mark.parametrize("how", ["saved", "found", "watched", "follow-up"])
async def test_a_waiter_is_rung_after_the_exit_whichever_way_it_registered(
    world: World, lane: LaneSession, how: str
) -> None:
    waiter, finisher, other = [await world.process() for _ in range(3)]
    ears = [Ear(), Ear()]
    waiter.storage.doorbell.listen(ears[0])
    other.storage.doorbell.listen(ears[1])
    await eventually(lambda: all(each.storage.doorbell.healthy for each in (waiter, other)))
    request = message(key="k", wait=how == "saved")
    match how:
        case "saved":
            await waiter.storage.save([request])
        case "found":
            await finisher.storage.save([request])
            await waiter.storage.save([message(key="k", wait=True)])
        case "watched":
            await finisher.storage.save([request])
            await waiter.storage.watch([request.envelope.request_id])
        case _:
            mine = await waiter.lane()
            await mine.acquire([TWO])
            request = replace(request, wait=True)
            await mine.flush([Commit(shard=TWO, requests=[request])])
            await mine.close()

    await lane.flush([Commit(shard=ONE, replies=[success(request)])])
    finisher.storage.doorbell.ring_replies([request.envelope.request_id])

    await eventually(lambda: ears[0].replies == {request.envelope.request_id})
    assert ears[1].replies == set()


async def test_whoever_watches_then_reads_misses_no_exit(world: World, lane: LaneSession) -> None:
    waiter, finisher = await world.process(), await world.process()
    ear = Ear()
    waiter.storage.doorbell.listen(ear)
    requests = [message() for _ in range(40)]
    await finisher.storage.save(requests)

    async def finish() -> None:
        for request in requests:
            await lane.flush([Commit(shard=ONE, replies=[success(request)])])
            finisher.storage.doorbell.ring_replies([request.envelope.request_id])

    seen: set[Snowflake] = set()

    async def wait() -> None:
        for request in requests:
            id = request.envelope.request_id
            await waiter.storage.watch([id])
            seen.update(reply.request_id for reply in await waiter.storage.replies([id]))

    await asyncio.gather(finish(), wait())

    await eventually(lambda: len(seen | ear.replies) == len(requests))


async def test_a_process_without_notifications_hears_nothing_and_knows_it(world: World) -> None:
    deaf, hearing = await world.process(notifications=False), await world.process()
    for each in (deaf, hearing):
        each.storage.doorbell.listen(Ear())

    await eventually(lambda: hearing.storage.doorbell.healthy)
    assert not deaf.storage.doorbell.healthy
    deaf.storage.doorbell.ring_topology()
    await deaf.storage.save([message(wait=True)])
    await deaf.storage.watch([next_id()])


# --- the register of runners ----------------------------------------------------------------------


def runner_row(id: RunnerId, **changes: object) -> RunnerRow:
    row = RunnerRow(id=id, groups=["default", "blue"], weight=2.5, host="box", pid=7, version="1.2")
    return replace(row, types={"Fulfil": "workflow"}, machine=9, **changes)


async def test_a_registered_runner_is_seen_by_all(world: World) -> None:
    mine, peer = await world.process(register=False), await world.process()

    await mine.registry.register(runner_row(mine.runner))

    beat = await peer.registry.beat(peer.runner)
    rows = {row.id: row for row in beat.runners}
    assert beat.alive
    assert rows.keys() == {mine.runner, peer.runner}
    seen = rows[mine.runner]
    assert list(seen.groups) == ["default", "blue"]
    assert (seen.weight, seen.host, seen.pid, seen.version) == (2.5, "box", 7, "1.2")
    assert (dict(seen.types), seen.machine) == ({"Fulfil": "workflow"}, 9)
    assert not seen.draining
    assert seen.started_at is not None
    assert seen.beat_at is not None
    assert seen.died_at is None
    assert beat.server_started < beat.now
    assert {row.id for row in await mine.storage.runners()} == {mine.runner, peer.runner}


async def test_registering_again_changes_what_others_see(process: Process) -> None:
    await process.registry.register(runner_row(process.runner))

    (row,) = (await process.registry.beat(process.runner)).runners

    assert dict(row.types) == {"Fulfil": "workflow"}


async def test_a_heartbeat_is_dated_by_the_database(process: Process) -> None:
    first = await process.registry.beat(process.runner)
    second = await process.registry.beat(process.runner)

    assert second.now > first.now
    (row,) = second.runners
    assert row.beat_at is not None
    assert first.now - timedelta(seconds=1) < row.beat_at <= second.now


async def test_a_heartbeat_tells_all_what_a_runner_has_in_hand(
    world: World, process: Process
) -> None:
    peer, load = await world.process(), RunnerLoad(lanes=2, shards=150, entities=7, crowded=True)

    own = await process.registry.beat(process.runner, load)

    assert {row.id: row.load for row in own.runners}[process.runner] == load
    beat = await peer.registry.beat(peer.runner)
    assert {row.id: row.load for row in beat.runners} == {process.runner: load, peer.runner: None}
    seen = {row.id: row.load for row in await peer.storage.runners()}
    assert seen[process.runner] == load


async def test_the_load_of_a_runner_is_that_of_its_last_heartbeat(process: Process) -> None:
    await process.registry.beat(process.runner, RunnerLoad(shards=150))

    beat = await process.registry.beat(process.runner, RunnerLoad(shards=3))

    assert [row.load for row in beat.runners] == [RunnerLoad(shards=3)]


async def test_who_never_registered_is_not_alive(world: World) -> None:
    stranger = await world.process(register=False)

    assert not (await stranger.registry.beat(stranger.runner)).alive


async def test_a_draining_runner_is_seen_to_drain(world: World, process: Process) -> None:
    peer = await world.process()

    await process.registry.drain(process.runner)

    beat = await peer.registry.beat(peer.runner)
    assert {row.id: row.draining for row in beat.runners} == {
        process.runner: True,
        peer.runner: False,
    }


async def test_a_runner_that_left_is_gone_but_remembered(world: World, lane: LaneSession) -> None:
    leaver, peer = await world.process(), await world.process()

    await leaver.registry.leave(leaver.runner)

    beat = await peer.registry.beat(peer.runner)
    assert leaver.runner not in {row.id for row in beat.runners}
    assert list(await peer.registry.unburied()) == []
    died = {row.id: row.died_at for row in await peer.storage.runners()}
    assert died[leaver.runner] is not None
    assert died[peer.runner] is None
    assert not (await leaver.registry.beat(leaver.runner)).alive


async def silent_for(peer: Process, runner: RunnerId, ttl: timedelta) -> None:
    """Wait until the runner's last heartbeat is older than the time to live."""

    async def old() -> bool:
        beat = await peer.registry.beat(peer.runner)
        beat_at = {row.id: row.beat_at for row in beat.runners}[runner]
        return beat_at is not None and beat.now - beat_at > ttl

    await eventually(old)


TTL = timedelta(milliseconds=150)


async def test_a_silent_runner_is_buried_by_one_of_its_peers(world: World) -> None:
    silent, one, two = [await world.process() for _ in range(3)]
    await silent_for(one, silent.runner, TTL)
    await two.registry.beat(two.runner)

    buried = await asyncio.gather(
        one.registry.bury(silent.runner, by=one.runner, ttl=TTL),
        two.registry.bury(silent.runner, by=two.runner, ttl=TTL),
    )

    assert sorted(buried) == [False, True]
    assert list(await one.registry.unburied()) == [silent.runner]
    beat = await one.registry.beat(one.runner)
    assert {row.id for row in beat.runners} == {one.runner, two.runner}
    assert not (await silent.registry.beat(silent.runner)).alive


async def test_a_runner_that_beats_cannot_be_buried(world: World, process: Process) -> None:
    peer = await world.process()
    await process.registry.beat(process.runner)

    assert not await peer.registry.bury(process.runner, by=peer.runner, ttl=HOUR)
    assert (await process.registry.beat(process.runner)).alive


async def test_only_the_living_bury(world: World, process: Process) -> None:
    dead, stranger = await world.process(), await world.process(register=False)
    await dead.registry.leave(dead.runner)
    peer = await world.process()
    await silent_for(peer, process.runner, TTL)

    assert not await dead.registry.bury(process.runner, by=dead.runner, ttl=TTL)
    assert not await stranger.registry.bury(process.runner, by=stranger.runner, ttl=TTL)
    assert not await peer.registry.bury(RunnerId(stranger.runner), by=peer.runner, ttl=TTL)
    assert (await process.registry.beat(process.runner)).alive


async def test_a_buried_runners_sessions_end_and_its_shards_are_free(world: World) -> None:
    dead, lane = await world.runner_with_lane()
    await lane.acquire([ONE])
    closed: list[str] = []
    lane.on_close(lambda: closed.append("lane"))
    peer, successor = await world.runner_with_lane()
    await silent_for(peer, dead.runner, TTL)
    assert await peer.registry.bury(dead.runner, by=peer.runner, ttl=TTL)

    async def gone() -> bool:
        return await peer.registry.end_sessions(dead.runner) == 0

    await eventually(gone)

    assert list(await peer.registry.unburied()) == []
    await eventually(lambda: closed == ["lane"])
    assert lane.closed
    with pytest.raises(StorageUnavailable):
        await lane.flush([Commit(shard=ONE, journal=[step(next_id(), 1)])])
    assert await successor.acquire([ONE]) == {ONE: 2}


async def test_the_sessions_of_a_runner_that_lives_are_left_alone(world: World) -> None:
    process, lane = await world.runner_with_lane()
    await lane.acquire([ONE])
    peer = await world.process()

    await peer.registry.end_sessions(process.runner)

    await lane.flush([Commit(shard=ONE, journal=[step(next_id(), 1)])])
    assert not lane.closed


async def test_a_runner_declared_dead_gets_no_shards(world: World) -> None:
    dead, lane = await world.runner_with_lane()
    peer = await world.process()
    await silent_for(peer, dead.runner, TTL)
    assert await peer.registry.bury(dead.runner, by=peer.runner, ttl=TTL)

    assert await lane.acquire([ONE]) == {}


# --- groups and machine ids -----------------------------------------------------------------------


async def test_a_group_keeps_the_size_it_was_created_with(world: World) -> None:
    one, two = await world.process(), await world.process()
    await asyncio.gather(*(each.storage.ensure_groups(["blue", "red"]) for each in (one, two)))

    assert one.storage.shards_in("blue") == two.storage.shards_in("blue") == 12
    with pytest.raises(ConfigurationError, match="green"):
        one.storage.shards_in("green")


async def test_processes_never_share_a_machine_id(world: World) -> None:
    processes = [await world.process() for _ in range(5)]

    leases = await asyncio.gather(*(each.storage.lease_machine(None) for each in processes * 3))

    assert len({lease.machine for lease in leases}) == 15
    assert all(0 <= lease.machine < 1024 for lease in leases)
    assert all(lease.until > SystemClock().now() for lease in leases)


async def test_a_lease_is_prolonged_under_its_machine_id(process: Process) -> None:
    lease = await process.storage.lease_machine(None)
    await process.storage.release_machine(lease)  # it runs out in a second

    longer = await process.storage.lease_machine(lease)

    assert longer.machine == lease.machine
    assert longer.until > SystemClock().now() + timedelta(seconds=10)


async def test_anothers_lease_cannot_be_prolonged(world: World, process: Process) -> None:
    lease = await process.storage.lease_machine(None)
    other = await world.process()

    gotten = await other.storage.lease_machine(lease)

    assert gotten.machine != lease.machine


async def test_a_lease_may_be_released_twice(process: Process) -> None:
    lease = await process.storage.lease_machine(None)

    await process.storage.release_machine(lease)
    await process.storage.release_machine(lease)

    assert (await process.storage.lease_machine(None)).until > SystemClock().now()


# --- user transactions ----------------------------------------------------------------------------


async def test_a_transaction_commits_its_journal_row(process: Process, lane: LaneSession) -> None:
    row = step(next_id(), 1)

    async def work(transaction: Transaction) -> JournalRow:
        return row

    await process.storage.transact(Fence(shard=ONE, epoch=1, runner=process.runner), work)

    assert list(await process.storage.history(row.execution)) == [row]


async def test_a_transaction_of_an_earlier_epoch_is_refused_before_it_begins(
    world: World, process: Process, lane: LaneSession
) -> None:
    other = await world.process()
    fences = [
        Fence(shard=ONE, epoch=2, runner=process.runner),
        Fence(shard=ONE, epoch=0, runner=process.runner),
        Fence(shard=ONE, epoch=1, runner=other.runner),
        Fence(shard=TWO, epoch=1, runner=process.runner),
    ]
    began: list[Fence] = []

    async def work(transaction: Transaction) -> JournalRow:
        began.append(fence)
        return step(next_id(), 1)

    for fence in fences:
        with pytest.raises(OwnershipLost):
            await process.storage.transact(fence, work)

    assert began == []


async def test_what_a_transaction_raises_rolls_it_back(process: Process, lane: LaneSession) -> None:
    async def work(transaction: Transaction) -> JournalRow:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await process.storage.transact(Fence(shard=ONE, epoch=1, runner=process.runner), work)

    await lane.release([ONE])
    assert await lane.acquire([ONE]) == {ONE: 2}


async def test_a_cancelled_transaction_is_rolled_back_and_lets_go_of_its_shard(
    process: Process, lane: LaneSession
) -> None:
    begun = asyncio.Event()
    row = step(next_id(), 1)

    async def work(transaction: Transaction) -> JournalRow:
        begun.set()
        await asyncio.Event().wait()
        return row

    fence = Fence(shard=ONE, epoch=1, runner=process.runner)
    async with asyncio.TaskGroup() as group:
        task = group.create_task(process.storage.transact(fence, work))
        await begun.wait()
        task.cancel()

    assert task.cancelled()
    assert list(await process.storage.history(row.execution)) == []
    await lane.release([ONE])
    assert await lane.acquire([ONE]) == {ONE: 2}


async def test_nobody_takes_a_shard_from_under_a_transaction(
    world: World, process: Process, lane: LaneSession
) -> None:
    _, rival = await world.runner_with_lane()
    begun, go_on = asyncio.Event(), asyncio.Event()
    row = step(next_id(), 1)

    async def work(transaction: Transaction) -> JournalRow:
        begun.set()
        await go_on.wait()
        return row

    async with asyncio.TaskGroup() as group:
        fence = Fence(shard=ONE, epoch=1, runner=process.runner)
        group.create_task(process.storage.transact(fence, work))
        await begun.wait()
        lane.terminate()
        during = await rival.acquire([ONE])
        go_on.set()

    assert during == {}
    assert list(await process.storage.history(row.execution)) == [row]

    async def taken() -> bool:
        return await rival.acquire([ONE]) == {ONE: 2}

    await eventually(taken)


async def test_a_frozen_transaction_ends_with_its_runners_sessions(
    world: World, process: Process, lane: LaneSession
) -> None:
    peer, successor = await world.runner_with_lane()
    begun, go_on = asyncio.Event(), asyncio.Event()
    row = step(next_id(), 1)
    errors: list[Exception] = []

    async def work(transaction: Transaction) -> JournalRow:
        begun.set()
        await go_on.wait()
        return row

    async def transact() -> None:
        try:
            fence = Fence(shard=ONE, epoch=1, runner=process.runner)
            await process.storage.transact(fence, work)
        except (StorageUnavailable, OwnershipLost) as error:
            errors.append(error)

    async with asyncio.TaskGroup() as group:
        group.create_task(transact())
        await begun.wait()
        await silent_for(peer, process.runner, TTL)
        assert await peer.registry.bury(process.runner, by=peer.runner, ttl=TTL)

        async def taken() -> bool:
            left = await peer.registry.end_sessions(process.runner)
            return left == 0 and await successor.acquire([ONE]) == {ONE: 2}

        await eventually(taken)
        go_on.set()

    assert len(errors) == 1
    assert list(await peer.storage.history(row.execution)) == []


# --- the storage itself ---------------------------------------------------------------------------


async def test_a_closed_storage_refuses_work(world: World) -> None:
    process = await world.process()
    await process.storage.close()

    with pytest.raises(StorageUnavailable):
        await process.storage.save([message()])
    with pytest.raises(StorageUnavailable):
        await process.storage.find("Fulfil", "o-1")


async def test_a_connection_that_is_none_cannot_carry_a_start(process: Process) -> None:
    with pytest.raises(ConfigurationError):
        await process.storage.save_on(object(), start("o-1"))

    assert await process.storage.find("Fulfil", "o-1") is None


async def test_the_key_of_a_run_names_its_execution(process: Process) -> None:
    run = await save_one(process, start("o-1"))

    assert run.envelope.key == run_key("o-1")
    (again,) = await process.storage.save([start("o-1", payload=b"[]")])
    assert again.outcome is SaveOutcome.EXISTS
    assert (again.request_id, again.payload) == (run.envelope.request_id, b"{}")


async def test_who_does_not_wait_any_more_is_not_told(world: World) -> None:
    owner = await world.process()
    leaves, stays = [await world.process() for _ in range(2)]
    ears = [await listening(process) for process in (leaves, stays)]
    request = await save_one(owner, message())
    for process in (leaves, stays):
        await process.storage.watch([request.envelope.request_id])

    await leaves.storage.unwatch([request.envelope.request_id, next_id()])
    owner.storage.doorbell.ring_replies([request.envelope.request_id])

    await eventually(lambda: ears[1].replies)
    assert ears[0].replies == set()
