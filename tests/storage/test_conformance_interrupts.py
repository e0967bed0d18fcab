"""Interrupts as ``storage.protocol`` has them, asked of both storages: rows of their own that wait
in the inbox of the request they are to end."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from engine.core.envelope import Interrupt, Uninterruptible
from engine.core.ids import entity_key
from engine.core.status import Status
from engine.storage.protocol import Commit, InboxKind, InboxRow, LaneSession, SaveRequest
from tests.storage.world import (
    ONE,
    TWO,
    Process,
    World,
    chunk,
    interrupt,
    message,
    save_one,
    seqs_of,
    start,
    success,
    sweep_of,
    take_over,
    update,
)

LATER = datetime.now(UTC) + timedelta(days=1)


async def interrupts_of(lane: LaneSession, *in_flight: int) -> list[InboxRow]:
    swept = await sweep_of(lane, in_flight=in_flight)
    return [row for row in swept.rows if row.kind is InboxKind.INTERRUPT]


async def interrupted(process: Process, lane: LaneSession, request: SaveRequest) -> InboxRow:
    """The row of an interrupt that has just been stored."""
    assert await process.storage.interrupt([interrupt(request)]) == [True]
    (row,) = await interrupts_of(lane)
    return row


# --- what is stored -------------------------------------------------------------------------------


async def test_an_interrupt_waits_behind_the_request_it_is_for(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    (seq,) = await seqs_of(lane)

    row = await interrupted(process, lane, request)

    assert row == InboxRow(
        seq=row.seq,
        kind=InboxKind.INTERRUPT,
        shard=ONE,
        envelope=request.envelope,
        target=seq,
    )
    assert await seqs_of(lane) == [seq, row.seq]
    assert row.seq > seq


async def test_an_interrupt_keeps_its_place_among_other_messages(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    await process.storage.interrupt([interrupt(request)])
    await save_one(process, message())

    rows = (await sweep_of(lane)).rows

    assert [row.kind for row in rows] == [
        InboxKind.REQUEST,
        InboxKind.INTERRUPT,
        InboxKind.REQUEST,
    ]


async def test_an_interrupt_says_what_its_request_said_of_interrupts(
    process: Process, lane: LaneSession
) -> None:
    asked = message()
    deaf = replace(asked.envelope, uninterruptible=Uninterruptible.CLIENT)
    request = await save_one(process, replace(asked, envelope=deaf))

    row = await interrupted(process, lane, request)

    assert row.envelope.uninterruptible is Uninterruptible.CLIENT


async def test_a_request_that_is_being_handled_can_be_interrupted(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    (seq,) = await seqs_of(lane)

    await process.storage.interrupt([interrupt(request)])

    (row,) = await interrupts_of(lane, seq)
    assert row.target == seq


async def test_a_request_of_the_future_is_interrupted_now(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message(deliver_at=LATER))

    row = await interrupted(process, lane, request)

    assert await seqs_of(lane) == [row.seq]
    assert row.target is not None
    await lane.flush([Commit(shard=ONE, replies=[success(request)], settled=[row.seq, row.target])])
    swept = await sweep_of(lane)
    assert (swept.rows, swept.next_due) == ([], None)


async def test_an_unknown_request_is_not_interrupted(process: Process, lane: LaneSession) -> None:
    assert await process.storage.interrupt([interrupt(message())]) == [False]

    assert await interrupts_of(lane) == []


async def test_a_request_that_has_its_exit_is_not_interrupted(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    await lane.flush([Commit(shard=ONE, replies=[success(request)], settled=await seqs_of(lane))])

    assert await process.storage.interrupt([interrupt(request)]) == [False]

    assert await interrupts_of(lane) == []


async def test_a_stream_that_goes_on_is_interrupted(process: Process, lane: LaneSession) -> None:
    request = await save_one(process, message())
    await lane.flush([Commit(shard=ONE, replies=[chunk(request, 0), chunk(request, 1)])])

    row = await interrupted(process, lane, request)

    assert row.reply is None


async def test_each_of_several_interrupts_has_its_answer(
    process: Process, lane: LaneSession
) -> None:
    done, waiting, elsewhere = message(), message(), message(shard=TWO)
    await process.storage.save([done, waiting, elsewhere])
    (first, _) = await seqs_of(lane)
    await lane.flush([Commit(shard=ONE, replies=[success(done)], settled=[first])])

    asked = [done, elsewhere, message(), waiting]
    answers = await process.storage.interrupt([interrupt(each) for each in asked])

    assert list(answers) == [False, True, False, True]
    (row,) = await interrupts_of(lane)
    assert row.envelope.request_id == waiting.envelope.request_id


async def test_no_interrupts_have_no_answers(process: Process) -> None:
    assert list(await process.storage.interrupt([])) == []


async def test_an_interrupt_goes_to_the_shard_that_the_request_is_stored_at(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    astray = Interrupt(
        request_id=request.envelope.request_id,
        address=replace(request.envelope.address, shard=TWO),
    )

    assert await process.storage.interrupt([astray]) == [True]

    (row,) = await interrupts_of(lane)
    assert row.shard == ONE


# --- again, and too late --------------------------------------------------------------------------


async def test_storing_an_interrupt_again_is_harmless(process: Process, lane: LaneSession) -> None:
    request = await save_one(process, message())

    answers = [
        *await process.storage.interrupt([interrupt(request), interrupt(request)]),
        *await process.storage.interrupt([interrupt(request)]),
    ]

    assert answers == [True, True, True]
    rows = await interrupts_of(lane)
    assert {row.envelope.request_id for row in rows} == {request.envelope.request_id}
    assert len({row.seq for row in rows}) == len(rows)  # each comes once, however many there are
    (target,) = {row.target for row in rows}
    assert target is not None
    await lane.flush(
        [
            Commit(
                shard=ONE,
                replies=[success(request)],
                settled=[target, *(row.seq for row in rows)],
            )
        ]
    )
    assert await seqs_of(lane) == []


async def test_many_processes_may_interrupt_one_request(
    world: World, process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    others = [await world.process(register=False) for _ in range(3)]

    answers = await asyncio.gather(
        *(other.storage.interrupt([interrupt(request)]) for other in others)
    )

    assert [list(answer) for answer in answers] == [[True]] * 3
    assert {row.envelope.request_id for row in await interrupts_of(lane)} == {
        request.envelope.request_id
    }


async def test_an_interrupt_that_comes_too_late_brings_the_exit(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    row = await interrupted(process, lane, request)
    assert row.target is not None

    await lane.flush(
        [
            Commit(
                shard=ONE,
                replies=[chunk(request, 0), success(request, b"done", sequence=1)],
                settled=[row.target],
            )
        ]
    )

    (late,) = await interrupts_of(lane)
    assert late.target is None
    assert late.reply is not None
    assert (late.reply.sequence, late.reply.payload) == (1, b"done")


async def test_settling_an_interrupt_leaves_its_request(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    row = await interrupted(process, lane, request)

    await lane.flush([Commit(shard=ONE, settled=[row.seq])])

    assert await seqs_of(lane) == [row.target]


# --- executions -----------------------------------------------------------------------------------


async def test_an_interrupt_of_an_execution_is_one_of_its_events(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    id = run.envelope.request_id
    (seq,) = await seqs_of(lane)

    row = await interrupted(process, lane, run)

    assert (row.execution, row.target) == (id, seq)
    assert row.state is not None
    assert (row.state.request_id, row.state.status) == (id, Status.SCHEDULED)
    assert await process.storage.waiting_rows(id) == 2


async def test_an_interrupt_reaches_an_execution_that_sleeps(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    id = run.envelope.request_id
    asleep = update(id, Status.SUSPENDED, wake_at=LATER)
    asleep.settled = await seqs_of(lane)
    await lane.flush([asleep])

    row = await interrupted(process, lane, run)

    assert (row.execution, row.target, row.reply) == (id, None, None)
    assert row.state is not None
    assert row.state.status is Status.SUSPENDED


# --- whatever else happens ------------------------------------------------------------------------


async def test_an_interrupt_is_delivered_to_an_entity_that_takes_no_messages(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    await process.storage.interrupt([interrupt(request)])

    swept = await sweep_of(lane, held=(entity_key("Stock", "sku-1"),))

    assert [row.kind for row in swept.rows] == [InboxKind.INTERRUPT]


async def test_an_interrupt_is_delivered_to_an_execution_that_takes_no_messages(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    await process.storage.interrupt([interrupt(run)])

    swept = await sweep_of(lane, held=(run.envelope.request_id,))

    assert [row.kind for row in swept.rows] == [InboxKind.INTERRUPT]


async def test_an_interrupt_survives_its_owner(
    world: World, process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    await process.storage.interrupt([interrupt(request)])

    successor = await take_over(world, lane)

    (row,) = await interrupts_of(successor)
    assert row.envelope.request_id == request.envelope.request_id
    assert row.target is not None
    assert row.failures == 0


async def test_an_interrupt_may_be_stored_while_nobody_owns_the_shard(
    world: World, process: Process
) -> None:
    request = await save_one(process, message())
    assert await process.storage.interrupt([interrupt(request)]) == [True]

    _, lane = await world.runner_with_lane()
    await lane.acquire([ONE])

    (row,) = await interrupts_of(lane)
    assert row.target is not None
