"""One run of a stream handler: batches, the window, and every way in which it can end."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import pytest

from engine.cluster.stream import Chunk, Moved, StreamProducer
from engine.core.reply import Success
from engine.storage.protocol import BadBatch, StreamPosition
from engine.testing import VirtualClock

WINDOW = 4


class Shelf:
    """A ``ChunkSink`` that keeps batches, each when the test lets it."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.asked: list[list[int]] = []
        self.open = asyncio.Event()
        self.error: Exception | None = None

    async def put(self, chunks: Sequence[Chunk]) -> None:
        sequences = [sequence for sequence, payload in chunks]
        assert [payload for _, payload in chunks] == [b"%d" % number for number in sequences]
        self.asked.append(sequences)
        await self.open.wait()
        if self.error is not None:
            raise self.error
        self.batches.append(sequences)

    @property
    def kept(self) -> list[int]:
        return [sequence for batch in self.batches for sequence in batch]


class Source:
    """A generator that says whether it was closed, and pauses where the test wants it to."""

    def __init__(self, *, count: int = 1000, first: int = 0, pause_at: int | None = None) -> None:
        self.given = first
        self.closed = False
        self.go = asyncio.Event()
        self._count = count
        self._pause_at = pause_at

    async def numbers(self) -> AsyncGenerator[int, None]:
        try:
            while self.given < self._count:
                if self.given == self._pause_at:
                    await self.go.wait()
                self.given += 1
                yield self.given - 1
        finally:
            self.closed = True


@pytest.fixture
async def shelf() -> Shelf:
    return Shelf()


def producer_of(
    generator: AsyncGenerator[Any, Any],
    shelf: Shelf,
    *,
    position: StreamPosition | None = None,
    resumable: bool = False,
) -> StreamProducer:
    return StreamProducer(
        generator=generator,
        encode=lambda value: str(value).encode(),
        sink=shelf,
        position=position or StreamPosition(),
        resumable=resumable,
        window=WINDOW,
        abandoned_after=timedelta(hours=1),
        clock=VirtualClock(),
    )


@asynccontextmanager
async def running(producer: StreamProducer) -> AsyncIterator[asyncio.Task[Any]]:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(_contained(producer))
        yield task
        task.cancel()


async def _contained(producer: StreamProducer) -> object:
    try:
        return await producer.run()
    except BaseException as error:  # noqa: BLE001 it is what the test looks at
        return error


async def turns(number: int = 50) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_what_is_drawn_while_a_put_is_under_way_is_the_next_batch(shelf: Shelf) -> None:
    source = Source(pause_at=1)
    async with running(producer_of(source.numbers(), shelf)):
        await turns()
        source.go.set()
        await turns()
        assert source.given == WINDOW
        assert shelf.asked == [[0]]
        shelf.open.set()
        await turns()
        assert shelf.batches == [[0], [1, 2, 3]]


async def test_no_more_than_the_window_is_drawn_and_an_acknowledgement_lets_it_go_on(
    shelf: Shelf,
) -> None:
    source = Source()
    producer = producer_of(source.numbers(), shelf)
    shelf.open.set()
    async with running(producer):
        await turns()
        assert (source.given, producer.stalled) == (WINDOW, True)
        producer.acknowledged(1)
        await turns()
        assert (source.given, producer.unacknowledged) == (WINDOW + 2, WINDOW)
        producer.acknowledged(0)  # an old one comes late
        await turns()
        assert source.given == WINDOW + 2
        producer.acknowledged(1_000_000)  # of what was never drawn nothing is acknowledged
        await turns()
        assert source.given == WINDOW + 2 + WINDOW
    assert shelf.kept == list(range(source.given))


async def test_large_chunks_are_not_put_all_at_once(shelf: Shelf) -> None:
    sizes: list[int] = []

    class Scale:
        async def put(self, chunks: Sequence[Chunk]) -> None:
            sizes.append(sum(len(payload) for _, payload in chunks))
            await turns()

    producer = StreamProducer(
        generator=Source(count=8).numbers(),
        encode=lambda _: b"x" * 700_000,
        sink=Scale(),
        position=StreamPosition(),
        resumable=False,
        window=100,
        abandoned_after=timedelta(hours=1),
        clock=VirtualClock(),
    )
    assert await producer.run() == Success(b"null")
    assert set(sizes) == {700_000}
    assert (len(sizes) + len(producer.rest), producer.end) == (8, 8)
    assert len(producer.rest) == 1


async def test_the_last_chunks_are_left_for_the_exit(shelf: Shelf) -> None:
    producer = producer_of(Source(count=3).numbers(), shelf)
    shelf.open.set()
    assert await producer.run() == Success(b"null")
    assert [*shelf.kept, *(sequence for sequence, _ in producer.rest)] == [0, 1, 2]
    assert producer.end == 3


async def test_a_run_does_not_end_before_a_put_that_is_under_way(shelf: Shelf) -> None:
    source = Source(count=3, pause_at=1)
    producer = producer_of(source.numbers(), shelf)
    async with running(producer) as task:
        await turns()
        source.go.set()
        await turns()
        assert source.closed
        assert not task.done()
        shelf.open.set()
        assert await task == Success(b"null")
    assert shelf.batches == [[0]]
    assert [sequence for sequence, _ in producer.rest] == [1, 2]
    assert producer.end == 3


async def test_an_interrupt_closes_the_generator_and_waits_for_the_put_under_way(
    shelf: Shelf,
) -> None:
    source = Source(pause_at=2)
    producer = producer_of(source.numbers(), shelf)
    async with running(producer) as task:
        await turns()
        task.cancel()
        await turns()
        assert source.closed
        assert not task.done()
        shelf.open.set()
        assert isinstance(await task, asyncio.CancelledError)
    assert shelf.batches == [[0, 1]]
    assert producer.end == 2


async def test_a_second_cancellation_waits_for_nothing(shelf: Shelf) -> None:
    source = Source(pause_at=2)
    async with running(producer_of(source.numbers(), shelf)) as task:
        await turns()
        task.cancel()
        await turns()
        task.cancel()
        await turns()
        assert isinstance(await task, asyncio.CancelledError)
    assert shelf.batches == []


async def test_a_run_whose_chunks_will_never_arrive_does_not_wait_for_them(shelf: Shelf) -> None:
    source = Source(pause_at=2)
    producer = producer_of(source.numbers(), shelf)
    async with running(producer) as task:
        await turns()
        task.cancel()
        await turns()
        assert not task.done()
        producer.lose()
        assert isinstance(await task, asyncio.CancelledError)
    assert source.closed


async def test_a_cancellation_while_it_is_stalled_closes_the_generator(shelf: Shelf) -> None:
    source = Source()
    shelf.open.set()
    async with running(producer_of(source.numbers(), shelf)) as task:
        await turns()
        assert not source.closed
        task.cancel()
        assert isinstance(await task, asyncio.CancelledError)
    assert source.closed


async def test_a_generator_that_goes_on_when_it_is_cancelled_is_closed_all_the_same(
    shelf: Shelf,
) -> None:
    closed: list[bool] = []

    async def stubborn() -> AsyncGenerator[int, None]:
        try:
            with suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
            yield 0
            yield 1
        finally:
            closed.append(True)

    shelf.open.set()
    producer = producer_of(stubborn(), shelf)
    async with running(producer) as task:
        await turns()
        task.cancel()
        assert isinstance(await task, asyncio.CancelledError)
    assert closed == [True]
    assert producer.end == 1


async def test_a_generator_that_ends_well_when_it_is_cancelled_has_succeeded(shelf: Shelf) -> None:
    async def polite() -> AsyncGenerator[int, None]:
        yield 0
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    shelf.open.set()
    async with running(producer_of(polite(), shelf)) as task:
        await turns()
        task.cancel()
        assert await task == Success(b"null")


async def test_chunks_that_are_refused_end_the_run_behind_those_that_are_stored(
    shelf: Shelf,
) -> None:
    source = Source(pause_at=1)
    shelf.open.set()
    producer = producer_of(source.numbers(), shelf)
    async with running(producer) as task:
        await turns()
        shelf.error = BadBatch("too long")
        source.go.set()
        assert await task is shelf.error
    assert source.closed
    assert (producer.end, list(producer.rest)) == (1, [])


async def test_what_is_stored_is_skipped_and_counts_until_it_is_acknowledged(shelf: Shelf) -> None:
    source = Source(count=8)
    shelf.open.set()
    producer = producer_of(
        source.numbers(), shelf, position=StreamPosition(next_sequence=5, acked=1)
    )
    async with running(producer):
        await turns()
        assert (source.given, producer.unacknowledged) == (6, WINDOW)
        assert shelf.kept == [5]
        producer.acknowledged(3)
        await turns()
    assert shelf.kept + [sequence for sequence, _ in producer.rest] == [5, 6, 7]
    assert producer.end == 8


async def test_a_resumable_generator_is_not_skipped(shelf: Shelf) -> None:
    source = Source(first=5, count=7)
    position = StreamPosition(next_sequence=5, acked=4)
    producer = producer_of(source.numbers(), shelf, position=position, resumable=True)
    shelf.open.set()
    assert await producer.run() == Success(b"null")
    assert [*shelf.kept, *(sequence for sequence, _ in producer.rest)] == [5, 6]
    assert producer.end == 7


@pytest.mark.parametrize("resumable", [False, True])
async def test_a_stream_that_is_to_move_leaves_where_it_would_wait(
    shelf: Shelf, resumable: bool
) -> None:
    source = Source()
    shelf.open.set()
    producer = producer_of(source.numbers(), shelf, resumable=resumable)
    async with running(producer) as task:
        await turns()
        producer.leave()
        assert isinstance(await task, Moved)
    assert source.closed
    assert shelf.kept == list(range(WINDOW))


@pytest.mark.parametrize(("resumable", "given"), [(False, WINDOW), (True, 3)])
async def test_a_stream_at_work_that_is_to_move_leaves_as_soon_as_it_loses_nothing_by_it(
    shelf: Shelf, resumable: bool, given: int
) -> None:
    source = Source(pause_at=2)
    shelf.open.set()
    producer = producer_of(source.numbers(), shelf, resumable=resumable)
    async with running(producer) as task:
        await turns()
        producer.leave()
        await turns()
        assert not task.done()
        source.go.set()
        assert isinstance(await task, Moved)
    assert source.given == given
