"""Streams as ``storage.protocol`` has them, asked of both storages: chunks, acknowledgements, the
exit behind them."""

import asyncio

import pytest

from engine.core.envelope import AckChunk, ReplyTo
from engine.core.ids import Snowflake
from engine.core.reply import ReplyKind
from engine.storage.protocol import (
    Commit,
    InboxKind,
    LaneSession,
    SaveRequest,
    StoredReply,
    StreamPosition,
)
from tests.eventually import eventually
from tests.storage.world import (
    ONE,
    TWO,
    Ear,
    Process,
    World,
    ack,
    chunk,
    listening,
    message,
    next_id,
    position_of,
    save_one,
    start,
    success,
    sweep_of,
)

START = StreamPosition(next_sequence=0, acked=-1)


async def produce(lane: LaneSession, request: SaveRequest, count: int, *, first: int = 0) -> None:
    """Store the stream's next chunks; the value of each is its sequence."""
    replies = [chunk(request, at, b"%d" % at) for at in range(first, first + count)]
    await lane.flush([Commit(shard=ONE, replies=replies)])


async def finish(lane: LaneSession, request: SaveRequest, sequence: int) -> None:
    await lane.flush([Commit(shard=ONE, replies=[success(request, b"done", sequence=sequence)])])


async def stored(process: Process, request: SaveRequest) -> list[int]:
    """The sequences of the chunks that are stored."""
    replies = await process.storage.replies([request.envelope.request_id])
    return [reply.sequence for reply in replies if reply.kind is ReplyKind.CHUNK]


@pytest.fixture
async def stream(process: Process, lane: LaneSession) -> SaveRequest:
    """A stream of five chunks that goes on."""
    request = await save_one(process, message())
    await produce(lane, request, 5)
    return request


# --- chunks and positions -------------------------------------------------------------------------


async def test_a_stream_without_chunks_is_at_its_start(process: Process) -> None:
    known, unknown = await save_one(process, message()), next_id()

    positions = await process.storage.streams([known.envelope.request_id, unknown])

    assert positions == {known.envelope.request_id: START, unknown: START}


async def test_nothing_is_known_of_no_streams(process: Process) -> None:
    assert await process.storage.streams([]) == {}


async def test_a_stream_goes_on_behind_its_last_chunk(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    assert await position_of(process, stream) == StreamPosition(next_sequence=5, acked=-1)

    await produce(lane, stream, 2, first=5)

    assert await position_of(process, stream) == StreamPosition(next_sequence=7, acked=-1)


async def test_the_exit_is_no_chunk(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    await finish(lane, stream, 5)

    assert await position_of(process, stream) == StreamPosition(next_sequence=5, acked=-1)


async def test_a_request_that_only_has_its_exit_has_no_chunks(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())

    await finish(lane, request, 0)

    assert await position_of(process, request) == START


async def test_the_exit_of_a_stream_comes_behind_its_chunks(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    id = stream.envelope.request_id

    await finish(lane, stream, 5)

    replies = await process.storage.replies([id])
    assert [reply.sequence for reply in replies] == [0, 1, 2, 3, 4, 5]
    assert replies[-1] == StoredReply(
        request_id=id, sequence=5, kind=ReplyKind.SUCCESS, payload=b"done"
    )


async def test_a_chunk_that_comes_after_the_exit_is_not_stored(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    await finish(lane, stream, 5)

    await produce(lane, stream, 2, first=6)

    assert await stored(process, stream) == [0, 1, 2, 3, 4]


async def test_a_second_exit_behind_more_chunks_changes_nothing(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    await finish(lane, stream, 5)

    await finish(lane, stream, 9)

    replies = await process.storage.replies([stream.envelope.request_id])
    assert [reply.sequence for reply in replies] == [0, 1, 2, 3, 4, 5]


async def test_the_exit_of_a_stream_is_what_the_waiting_execution_gets(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    reply_to = ReplyTo(execution=run.envelope.request_id, shard=ONE)
    request = await save_one(process, message(reply_to=reply_to))
    await produce(lane, request, 2)

    await lane.flush(
        [Commit(shard=ONE, replies=[success(request, b"done", sequence=2, reply_to=reply_to)])]
    )

    (row,) = [each for each in (await sweep_of(lane)).rows if each.kind is InboxKind.REPLY]
    assert row.reply is not None
    assert (row.reply.sequence, row.reply.payload) == (2, b"done")


# --- reading on -----------------------------------------------------------------------------------


async def test_replies_are_read_on_from_where_a_reader_stands(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    id = stream.envelope.request_id
    await finish(lane, stream, 5)

    async def behind(sequence: int) -> list[int]:
        replies = await process.storage.replies([id], after={id: sequence})
        return [reply.sequence for reply in replies]

    assert await behind(-1) == [0, 1, 2, 3, 4, 5]
    assert await behind(2) == [3, 4, 5]
    assert await behind(4) == [5]
    assert await behind(5) == []
    assert await behind(99) == []


async def test_each_reader_of_several_streams_has_a_place_of_its_own(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    other, third = await save_one(process, message()), await save_one(process, message())
    await produce(lane, other, 3)
    await produce(lane, third, 2)
    ids = [each.envelope.request_id for each in (stream, other, third)]

    replies = await process.storage.replies(ids, after={ids[0]: 3, ids[1]: 1})

    assert [(reply.request_id, reply.sequence) for reply in replies] == [
        (ids[0], 4),
        (ids[1], 2),
        (ids[2], 0),
        (ids[2], 1),
    ]


async def test_a_long_stream_is_read_in_pages(process: Process, lane: LaneSession) -> None:
    long, other = await save_one(process, message()), await save_one(process, message())
    await produce(lane, long, 1200)
    await produce(lane, other, 1)
    await finish(lane, long, 1200)
    id, beside = long.envelope.request_id, other.envelope.request_id

    page = await process.storage.replies([id, beside], after={id: -1, beside: -1})
    rest = await process.storage.replies([id], after={id: 999})

    assert [reply.sequence for reply in page] == [*range(1000), 0]
    assert [reply.sequence for reply in rest] == [*range(1000, 1201)]


# --- acknowledgements -----------------------------------------------------------------------------


async def test_acknowledged_chunks_are_deleted_and_the_position_stays(
    process: Process, stream: SaveRequest
) -> None:
    taken = await process.storage.acknowledge([ack(stream, 2)])

    assert taken == {stream.envelope.request_id: 2}
    assert await stored(process, stream) == [3, 4]
    assert await position_of(process, stream) == StreamPosition(next_sequence=5, acked=2)


async def test_a_stream_of_which_everything_was_taken_goes_on_where_it_was(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    await process.storage.acknowledge([ack(stream, 4)])

    assert await stored(process, stream) == []
    assert await position_of(process, stream) == StreamPosition(next_sequence=5, acked=4)
    await produce(lane, stream, 1, first=5)
    assert await stored(process, stream) == [5]
    assert await position_of(process, stream) == StreamPosition(next_sequence=6, acked=4)


async def test_the_position_never_goes_back(process: Process, stream: SaveRequest) -> None:
    await process.storage.acknowledge([ack(stream, 3)])

    for below in (3, 1, 0, -1):
        taken = await process.storage.acknowledge([ack(stream, below)])
        assert taken == {stream.envelope.request_id: 3}

    assert await stored(process, stream) == [4]
    assert await position_of(process, stream) == StreamPosition(next_sequence=5, acked=3)


async def test_chunks_that_were_never_stored_cannot_be_acknowledged(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    taken = await process.storage.acknowledge([ack(stream, 1000)])

    assert taken == {stream.envelope.request_id: 4}
    assert await position_of(process, stream) == StreamPosition(next_sequence=5, acked=4)
    await process.storage.acknowledge([ack(stream, 1000)])
    await produce(lane, stream, 2, first=5)
    assert await stored(process, stream) == [5, 6]
    assert await position_of(process, stream) == StreamPosition(next_sequence=7, acked=4)


async def test_the_exit_is_not_taken_by_an_acknowledgement(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    await finish(lane, stream, 5)

    for sequence in (2, 5, 1000):
        await process.storage.acknowledge([ack(stream, sequence)])

    (exit,) = await process.storage.replies([stream.envelope.request_id])
    assert (exit.kind, exit.sequence) == (ReplyKind.SUCCESS, 5)
    assert await position_of(process, stream) == StreamPosition(next_sequence=5, acked=4)


async def test_the_exit_that_comes_when_everything_was_taken_is_stored(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    await process.storage.acknowledge([ack(stream, 4)])

    await finish(lane, stream, 5)

    (exit,) = await process.storage.replies([stream.envelope.request_id])
    assert (exit.kind, exit.sequence) == (ReplyKind.SUCCESS, 5)


async def test_acknowledging_what_nobody_produces_is_harmless(process: Process) -> None:
    silent = await save_one(process, message())
    unknown = AckChunk(request_id=next_id(), id=next_id(), sequence=3)

    taken = await process.storage.acknowledge([ack(silent, 3), unknown])

    assert taken == {silent.envelope.request_id: -1, unknown.request_id: -1}
    assert await process.storage.acknowledge([]) == {}
    assert await position_of(process, silent) == START
    assert await process.storage.streams([unknown.request_id]) == {unknown.request_id: START}


async def test_of_several_acknowledgements_of_a_stream_the_furthest_counts(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    other = await save_one(process, message())
    await produce(lane, other, 3)

    await process.storage.acknowledge(
        [ack(stream, 1), ack(other, 0), ack(stream, 3), ack(stream, 2)]
    )

    assert await stored(process, stream) == [4]
    assert await stored(process, other) == [1, 2]
    assert await position_of(process, stream) == StreamPosition(next_sequence=5, acked=3)
    assert await position_of(process, other) == StreamPosition(next_sequence=3, acked=0)


async def test_acknowledgements_of_several_processes_do_not_hinder_each_other(
    world: World, process: Process, lane: LaneSession
) -> None:
    streams = [await save_one(process, message()) for _ in range(6)]
    for each in streams:
        await produce(lane, each, 10)
    readers = [process, *[await world.process() for _ in range(2)]]

    await asyncio.gather(
        *(
            reader.storage.acknowledge([ack(each, at) for each in order])
            for at in range(8)
            for reader, order in zip(readers, (streams, streams[::-1], streams), strict=True)
        )
    )

    for each in streams:
        assert await position_of(process, each) == StreamPosition(next_sequence=10, acked=7)
        assert await stored(process, each) == [8, 9]


async def test_any_process_acknowledges(world: World, stream: SaveRequest) -> None:
    reader = await world.process(register=False)

    await reader.storage.acknowledge([ack(stream, 0)])

    assert await stored(reader, stream) == [1, 2, 3, 4]


# --- the doorbell ---------------------------------------------------------------------------------


async def test_acknowledgements_ring_the_owner_and_nobody_else(
    world: World, process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    ear, other = await listening(process), await listening(await world.process())
    reader = await world.process(register=False)
    id, elsewhere = stream.envelope.request_id, next_id()

    reader.storage.doorbell.ring_acks([(ONE, id), (TWO, elsewhere)])

    await eventually(lambda: ear.acks == {id})
    assert (ear.shards, ear.replies) == (set(), set())
    assert other.acks == set()


async def test_an_owner_hears_of_the_acknowledgements_of_its_own_process(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    ear = await listening(process)

    process.storage.doorbell.ring_acks([(ONE, stream.envelope.request_id)])

    await eventually(lambda: ear.acks == {stream.envelope.request_id})


async def test_many_acknowledgements_all_arrive(
    process: Process, lane: LaneSession, world: World
) -> None:
    ear, reader = await listening(process), await world.process(register=False)
    ids = [next_id() for _ in range(1500)]

    reader.storage.doorbell.ring_acks((ONE, id) for id in ids)

    await eventually(lambda: ear.acks == set(ids))


async def rung(process: Process, ear: Ear, id: Snowflake) -> bool:
    """Whether a ring about the request reaches the ear before one that is sent after it."""
    other = next_id()
    await process.storage.watch([other])
    process.storage.doorbell.ring_replies([id])
    await eventually(lambda: _heard(process, ear, other))
    return id in ear.replies


def _heard(process: Process, ear: Ear, other: Snowflake) -> bool:
    process.storage.doorbell.ring_replies([other])
    return other in ear.replies


async def test_who_acknowledges_can_wait_for_what_follows(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    ear, id = await listening(process), stream.envelope.request_id

    await process.storage.acknowledge([ack(stream, 4)], wait=True)
    await produce(lane, stream, 1, first=5)

    process.storage.doorbell.ring_replies([id])
    await eventually(lambda: ear.replies == {id})


async def test_who_acknowledges_without_waiting_is_not_rung(
    process: Process, lane: LaneSession, stream: SaveRequest
) -> None:
    ear, id = await listening(process), stream.envelope.request_id

    await process.storage.acknowledge([ack(stream, 4)])

    assert not await rung(process, ear, id)


async def test_an_acknowledgement_that_changes_nothing_still_waits(
    process: Process, stream: SaveRequest
) -> None:
    ear, id = await listening(process), stream.envelope.request_id
    await process.storage.acknowledge([ack(stream, 4)])

    await process.storage.acknowledge([ack(stream, 4)], wait=True)

    process.storage.doorbell.ring_replies([id])
    await eventually(lambda: ear.replies == {id})
