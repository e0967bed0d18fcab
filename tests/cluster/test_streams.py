"""Streams as their callers see them, on memory and on PostgreSQL."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from pydantic import BaseModel

from engine import (
    AckChunk,
    Client,
    ConfigurationError,
    Entity,
    EntityAddress,
    EntityDefect,
    EntityId,
    EntityType,
    ExecutionFailed,
    Interrupt,
    NotFound,
    Reply,
    ReplyChunk,
    ReplyReceiver,
    ReplyWithExit,
    RequestFailed,
    Runner,
    Snowflake,
    State,
    StreamTaken,
    Success,
    Workflow,
    rpc,
)
from engine.core.reply import Interrupted
from engine.node import Node
from engine.storage.protocol import Saved, SaveRequest
from engine.testing import TestCluster
from tests.eventually import eventually

WINDOW = 8
FEED = EntityType("Feed")


class Feed(Entity):
    """Says in ``log`` what its handlers do; those that wait do so until ``go`` is set."""

    concurrency = 0

    def __init__(self) -> None:
        self.log: list[str] = []
        self.go = asyncio.Event()

    @rpc
    async def items(self, count: int) -> AsyncIterator[int]:
        self.log.append("begun")
        try:
            for number in range(count):
                yield number
        finally:
            self.log.append("closed")

    @rpc
    async def breaks(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number
        raise LookupError("no more")

    @rpc
    async def waits(self, before: int, after: int) -> AsyncIterator[int]:
        self.log.append("begun")
        try:
            for number in range(before):
                yield number
            await self.go.wait()
            for number in range(before, before + after):
                yield number
        finally:
            self.log.append("closed")

    @rpc(resumable=True)
    async def resumes(self, count: int) -> AsyncIterator[int]:
        self.log.append(f"from {self.next_sequence}")
        for number in range(self.next_sequence, count):
            yield number

    @rpc
    async def wrong(self) -> AsyncIterator[int]:
        yield 1
        yield "two"  # type: ignore[misc]  # pyright: ignore[reportReturnType]


class Given(BaseModel):
    numbers: list[int] = []


class Tally(Entity):
    """Keeps what it has given. Each number in ``breaks`` breaks the entity once."""

    state = State(Given)

    def __init__(self, *breaks: int) -> None:
        self.breaks = [*breaks]

    @rpc
    async def give(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            if number in self.breaks:
                self.breaks.remove(number)
                raise EntityDefect(f"at {number}")
            self.state.numbers.append(number)
            yield number

    @rpc(readonly=True)
    async def given(self) -> list[int]:
        return self.state.numbers


class Reads(Workflow[str, int]):
    async def execute(self, request: str) -> int:
        return len([item async for item in self.entity(Feed, request).items(3)])


@pytest.fixture(params=["memory", "postgres", "postgres without notifications"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    common = {"stream_window": WINDOW}
    if request.param == "memory":
        return common
    dsn = request.getfixturevalue("dsn")
    return {**common, "dsn": dsn, "notifications": "without" not in request.param}


@pytest.fixture
def feed() -> Feed:
    return Feed()


@pytest.fixture
async def cluster(feed: Feed, where: dict[str, Any]) -> AsyncIterator[TestCluster]:
    async with TestCluster(feed, Tally(), Reads(), **where) as cluster:
        yield cluster


async def take(stream: AsyncIterator[int], got: list[int]) -> None:
    async for item in stream:
        got.append(item)  # noqa: PERF401 what came before an error counts too


async def ask(cluster: TestCluster, tag: str, **arguments: object) -> ReplyReceiver:
    """Call a stream of Feed/a without taking anything of it."""
    return await cluster.runner.sharding.make_client(FEED).send("a", tag, arguments)


async def stored(cluster: TestCluster, request_id: Snowflake) -> list[int]:
    """The sequences of the chunks that are in the table."""
    replies = await cluster.runner.sharding.replies_for(request_id)
    return [reply.sequence for reply in replies if isinstance(reply, ReplyChunk)]


async def acknowledge(cluster: TestCluster, request_id: Snowflake, sequence: int) -> None:
    ack = AckChunk(request_id=request_id, id=request_id, sequence=sequence)
    await cluster.runner.sharding.ack_chunk(ack)


@asynccontextmanager
async def another(cluster: TestCluster) -> AsyncIterator[Client]:
    """A client in what could be another process."""
    node = Node(cluster.settings, clock=cluster.clock, open_storage=cluster._open)
    async with node:
        yield Client(cluster.settings, node=node)


# --- what a caller gets ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, WINDOW, WINDOW + 1, 200])
async def test_a_caller_gets_every_element_once_and_in_order(
    cluster: TestCluster, feed: Feed, count: int
) -> None:
    async with asyncio.timeout(40):
        got = [item async for item in cluster.client.entity(Feed, "a").items(count)]
    assert got == list(range(count))
    assert feed.log == ["begun", "closed"]


@pytest.mark.parametrize("count", [0, 1, WINDOW, WINDOW + 1, 50])
async def test_a_caller_in_another_process_gets_every_element_once_and_in_order(
    cluster: TestCluster, feed: Feed, count: int
) -> None:
    async with asyncio.timeout(40), another(cluster) as client:
        got = [item async for item in client.entity(Feed, "a").items(count)]
    assert got == list(range(count))
    assert feed.log == ["begun", "closed"]


async def test_many_streams_at_once_do_not_mix(cluster: TestCluster) -> None:
    async def total(id: str, count: int) -> list[int]:
        return [item async for item in cluster.client.entity(Feed, id).items(count)]

    async with asyncio.timeout(40), asyncio.TaskGroup() as group:
        tasks = [group.create_task(total(f"f{n % 7}", n)) for n in range(60)]
    assert [task.result() for task in tasks] == [list(range(n)) for n in range(60)]


async def test_what_a_stream_has_given_comes_before_its_failure(cluster: TestCluster) -> None:
    got: list[int] = []
    async with asyncio.timeout(10):
        with pytest.raises(RequestFailed, match="no more") as failed:
            await take(cluster.client.entity(Feed, "a").breaks(3), got)
    assert got == [0, 1, 2]
    assert failed.value.error.type == "LookupError"


async def test_an_element_of_the_wrong_type_fails_the_stream_behind_the_good_ones(
    cluster: TestCluster,
) -> None:
    got: list[int] = []
    async with asyncio.timeout(10):
        with pytest.raises(RequestFailed, match="wrong cannot be encoded"):
            await take(cluster.client.entity(Feed, "a").wrong(), got)
    assert got == [1]


async def test_an_element_comes_when_it_is_given_and_not_at_the_end(
    cluster: TestCluster, feed: Feed
) -> None:
    async with asyncio.timeout(10):
        stream = aiter(cluster.client.entity(Feed, "a").waits(2, 1))
        assert [await anext(stream), await anext(stream)] == [0, 1]
        feed.go.set()
        assert await anext(stream) == 2
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_taken_elements_leave_the_table_and_one_exit_stays(cluster: TestCluster) -> None:
    receiver = await ask(cluster, "items", count=WINDOW + 2)
    async with asyncio.timeout(10):
        await eventually(lambda: stored_is(cluster, receiver, range(WINDOW)))
        await acknowledge(cluster, receiver.request_id, 3)
        await eventually(lambda: stored_is(cluster, receiver, range(4, WINDOW + 2)))
        await acknowledge(cluster, receiver.request_id, WINDOW + 1)
        exit = await receiver
    assert exit == Success(b"null")
    assert await cluster.runner.sharding.replies_for(receiver.request_id) == [
        ReplyWithExit(request_id=receiver.request_id, exit=exit)
    ]


async def stored_is(cluster: TestCluster, receiver: ReplyReceiver, expected: range) -> bool:
    assert await stored(cluster, receiver.request_id) == list(expected)
    return True


async def test_a_receiver_gives_chunks_and_exit_to_whoever_asks(cluster: TestCluster) -> None:
    receiver = await ask(cluster, "items", count=WINDOW * 3)
    got: list[object] = []
    async with asyncio.timeout(10):
        async for reply in receiver.replies():
            got.append(reply)
            if isinstance(reply, ReplyChunk):
                await acknowledge(cluster, receiver.request_id, reply.sequence)
        again = [reply async for reply in receiver.replies()]
    chunks = [
        ReplyChunk(request_id=receiver.request_id, sequence=n, value=str(n).encode())
        for n in range(WINDOW * 3)
    ]
    exit = ReplyWithExit(request_id=receiver.request_id, exit=Success(b"null"))
    assert got == [*chunks, exit]
    assert again == [exit]


async def test_what_a_receiver_has_acknowledged_is_said_again_when_a_fail_over_lost_it(
    feed: Feed, dsn: str
) -> None:
    sql = await asyncpg.connect(dsn)
    async with (
        asyncio.timeout(40),
        TestCluster(feed, dsn=dsn, stream_window=WINDOW) as cluster,
        asyncio.TaskGroup() as group,
    ):
        receiver = await ask(cluster, "items", count=WINDOW * 4)
        taken = asyncio.Queue[Reply]()

        async def consume() -> None:
            async for reply in receiver.replies():
                await taken.put(reply)

        group.create_task(consume())
        for _ in range(WINDOW * 2):
            await acknowledge(cluster, receiver.request_id, (await taken.get()).sequence)
        await eventually(lambda: taken.qsize() == WINDOW)
        await sql.execute("delete from engine.replies; update engine.acks set sequence = 0")
        await cluster.crash()
        await eventually(lambda: stored_is(cluster, receiver, range(WINDOW * 2, WINDOW * 3)))
        await acknowledge(cluster, receiver.request_id, WINDOW * 3 - 1)
        await eventually(lambda: taken.qsize() == WINDOW * 2)
        await acknowledge(cluster, receiver.request_id, WINDOW * 4 - 1)
        assert await receiver == Success(b"null")
    await sql.close()


async def test_a_chunk_of_an_unknown_request_cannot_be_acknowledged(cluster: TestCluster) -> None:
    await ask(cluster, "items", count=0)
    with pytest.raises(NotFound):
        await acknowledge(cluster, Snowflake(1), 0)


async def test_who_waits_for_the_exit_alone_gets_it_beside_a_consumer(cluster: TestCluster) -> None:
    receiver = await ask(cluster, "items", count=WINDOW * 4)

    async def consume() -> None:
        async for reply in receiver.replies():
            if isinstance(reply, ReplyChunk):
                await acknowledge(cluster, receiver.request_id, reply.sequence)

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        exits = [group.create_task(_exit(receiver)) for _ in range(3)]
        group.create_task(consume())
    assert [task.result() for task in exits] == [Success(b"null")] * 3


async def _exit(receiver: ReplyReceiver) -> object:
    return await receiver


# --- the window -----------------------------------------------------------------------------------


async def test_a_stream_is_never_more_than_the_window_ahead(
    cluster: TestCluster, feed: Feed
) -> None:
    client = cluster.runner.sharding.make_client(FEED)
    async with asyncio.timeout(40):
        stream = cluster.client.entity(Feed, "a", key="k").items(WINDOW * 6)
        assert await anext(aiter(stream)) == 0
        request_id = (
            await client.options(key="k").send("a", "items", {"count": WINDOW * 6})
        ).request_id

        async def is_full() -> bool:
            assert len(await stored(cluster, request_id)) == WINDOW
            return True

        await eventually(is_full)
        async for item in stream:
            rows = await stored(cluster, request_id)
            assert len(rows) <= WINDOW
            assert rows == sorted(rows)
            assert rows[0] <= item + 1


async def test_an_acknowledgement_of_what_was_never_given_does_not_open_the_window(
    cluster: TestCluster,
) -> None:
    receiver = await ask(cluster, "items", count=WINDOW * 40)
    async with asyncio.timeout(20):
        for _ in range(30):
            await acknowledge(cluster, receiver.request_id, 10**6)
            assert len(await stored(cluster, receiver.request_id)) <= WINDOW


async def test_a_stream_that_nobody_takes_stops_at_the_window_and_ends_when_it_is_abandoned(
    feed: Feed,
) -> None:
    patience = timedelta(hours=1)
    async with TestCluster(feed, stream_window=WINDOW) as cluster:
        receiver = await ask(cluster, "items", count=WINDOW * 2)
        await cluster.advance(patience - timedelta(seconds=1))
        assert await stored(cluster, receiver.request_id) == list(range(WINDOW))
        await acknowledge(cluster, receiver.request_id, 0)
        await cluster.advance(patience - timedelta(seconds=1))
        assert feed.log == ["begun"]
        await cluster.advance(timedelta(seconds=2))
        assert feed.log == ["begun", "closed"]
        exit = await receiver
    assert isinstance(exit, Interrupted)
    assert "1:00:00" in exit.reason


# --- callers that go away -------------------------------------------------------------------------


async def test_leaving_the_loop_interrupts_the_handler_wherever_it_is(
    cluster: TestCluster, feed: Feed
) -> None:
    async with asyncio.timeout(20):
        async for item in cluster.client.entity(Feed, "a", key="k").waits(3, 1):
            if item == 2:
                break
        await eventually(lambda: feed.log == ["begun", "closed"])
        with pytest.raises(RequestFailed) as ended:
            [item async for item in cluster.client.entity(Feed, "a", key="k").waits(3, 1)]
    assert ended.value.error.type == "Interrupted"


async def test_closing_the_iterator_ends_a_stream_that_is_stalled_at_its_window(
    cluster: TestCluster, feed: Feed
) -> None:
    async with asyncio.timeout(20):
        async for item in cluster.client.entity(Feed, "a").items(1000):
            if item == 10:
                break
        await eventually(lambda: feed.log == ["begun", "closed"])


async def test_a_caller_that_is_cancelled_interrupts_the_handler(
    cluster: TestCluster, feed: Feed
) -> None:
    async def consume() -> None:
        async for _ in cluster.client.entity(Feed, "a").waits(1, 1):
            pass

    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        task = group.create_task(consume())
        await eventually(lambda: "begun" in feed.log)
        task.cancel()
        await eventually(lambda: feed.log == ["begun", "closed"])


@pytest.mark.parametrize("closes", [False, True])
async def test_a_caller_that_is_cancelled_while_its_call_is_being_stored_leaves_no_stream(
    cluster: TestCluster, feed: Feed, closes: bool
) -> None:
    async with asyncio.timeout(20):
        async with another(cluster) as client, slow_to_store(client) as (storing, go):
            call = asyncio.create_task(take(client.entity(Feed, "a", key="k").items(1000), []))
            await storing.wait()
            call.cancel()
            await asyncio.wait([call])
            await take(cluster.client.entity(Feed, "b").items(1), [])  # time to say too much
            go.set()
            if not closes:
                await eventually(lambda: not client._node.outbox._left)
                await ended_by_its_caller(cluster)
        await ended_by_its_caller(cluster)
        await eventually(lambda: feed.log.count("begun") == feed.log.count("closed"))


async def test_a_call_that_is_cancelled_before_it_is_sent_is_never_stored(
    cluster: TestCluster,
) -> None:
    async with asyncio.timeout(20), another(cluster) as client:
        async with slow_to_store(client) as (storing, go):
            before = asyncio.create_task(take(client.entity(Feed, "b").items(1), []))
            await storing.wait()
            call = asyncio.create_task(take(client.entity(Feed, "a", key="k").items(3), []))
            await eventually(lambda: len(client._node.outbox._queue) == 1)
            call.cancel()
            go.set()
            await asyncio.wait([before, call])
        # With the same key, which takes no other arguments once it is used.
        assert [item async for item in client.entity(Feed, "a", key="k").items(2)] == [0, 1]


@asynccontextmanager
async def slow_to_store(client: Client) -> AsyncIterator[tuple[asyncio.Event, asyncio.Event]]:
    """Says when the client begins to store something, and does so when it is told to go."""
    storage, storing, go = client._node.storage, asyncio.Event(), asyncio.Event()
    save = storage.save

    async def slowly(requests: Sequence[SaveRequest], *, apart: bool = False) -> Sequence[Saved]:
        storing.set()
        await go.wait()
        return await save(requests, apart=apart)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "save", slowly)
        yield storing, go


async def ended_by_its_caller(cluster: TestCluster) -> None:
    with pytest.raises(RequestFailed) as ended:
        await take(cluster.client.entity(Feed, "a", key="k").items(1000), [])
    assert ended.value.error.type == "Interrupted"


async def test_a_second_caller_that_gives_up_does_not_end_the_stream_of_the_first(
    cluster: TestCluster, feed: Feed
) -> None:
    async with asyncio.timeout(20), another(cluster) as client:
        first = aiter(cluster.client.entity(Feed, "a", key="k").waits(2, 2))
        assert await anext(first) == 0
        second = client.entity(Feed, "a", key="k").waits(2, 2)
        assert await anext(aiter(second)) == 0
        await second.aclose()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        await take(client.entity(Feed, "b").items(1), [])  # behind what it may have said
        feed.go.set()
        assert [item async for item in first] == [1, 2, 3]


async def test_a_second_caller_that_has_taken_elements_ends_the_stream_by_giving_up(
    cluster: TestCluster, feed: Feed
) -> None:
    async with asyncio.timeout(20), another(cluster) as client:
        receiver = (
            await cluster.runner.sharding.make_client(FEED)
            .options(key="k")
            .send("a", "waits", {"before": 2, "after": 2})
        )
        async for item in client.entity(Feed, "a", key="k").waits(2, 2):
            if item == 1:
                break
        assert isinstance(await receiver, Interrupted)
    assert feed.log == ["begun", "closed"]


async def test_who_looks_on_in_the_producers_process_takes_nothing_from_the_consumer_elsewhere(
    feed: Feed, where: dict[str, Any]
) -> None:
    if not where.get("notifications", True):
        pytest.skip("without them every element comes with a poll")
    async with (
        TestCluster(feed, **where, poll_interval=timedelta(seconds=30)) as cluster,
        another(cluster) as client,
        asyncio.timeout(20),
    ):
        stream = aiter(client.entity(Feed, "a", key="k").waits(1, WINDOW * 2))
        assert await anext(stream) == 0
        key = cluster.runner.sharding.make_client(FEED).options(key="k")
        receiver = await key.send("a", "waits", {"before": 1, "after": WINDOW * 2})
        onlooker = aiter(receiver.replies(first=10))
        looking = asyncio.ensure_future(anext(onlooker))
        await eventually(lambda: receiver.request_id in cluster.client._node.replies._waiting)
        following = asyncio.ensure_future(anext(stream))
        await eventually(lambda: stored_is(cluster, receiver, range(0)))
        await take(client.entity(Feed, "b").items(1), [])  # it waits for what follows by now
        feed.go.set()
        assert await following == 1
        looking.cancel()


async def test_another_caller_with_the_same_key_goes_on_behind_what_was_taken(
    cluster: TestCluster,
) -> None:
    async with asyncio.timeout(20):
        first = cluster.client.entity(Feed, "a", key="k").items(30)
        assert [await anext(aiter(first)) for _ in range(10)] == list(range(10))
        second = [item async for item in cluster.client.entity(Feed, "a", key="k").items(30)]
    assert second[-21:] == list(range(9, 30))
    assert second == list(range(second[0], 30))


async def test_who_misses_an_element_that_somebody_else_took_is_told(cluster: TestCluster) -> None:
    async with asyncio.timeout(20):
        stream = aiter(cluster.client.entity(Feed, "a", key="k").items(WINDOW * 4))
        assert [await anext(stream) for _ in range(WINDOW + 2)] == list(range(WINDOW + 2))
        client = cluster.runner.sharding.make_client(FEED).options(key="k")
        receiver = await client.send("a", "items", {"count": WINDOW * 4})
        await eventually(lambda: begins_behind(cluster, receiver, WINDOW))
        with pytest.raises(StreamTaken, match=r"chunk 3 .* another consumer"):
            await anext(receiver.replies(first=3))
        assert await anext(stream) == WINDOW + 2  # which does not disturb the other


async def begins_behind(cluster: TestCluster, receiver: ReplyReceiver, sequence: int) -> bool:
    return (await stored(cluster, receiver.request_id))[0] > sequence


async def test_of_two_callers_of_one_stream_none_sees_a_gap(cluster: TestCluster) -> None:
    count = WINDOW * 4
    got: list[int] = []
    async with asyncio.timeout(40), another(cluster) as other, another(cluster) as third:
        slow = aiter(other.entity(Feed, "a", key="k").items(count))
        got.append(await anext(slow))
        fast = [item async for item in third.entity(Feed, "a", key="k").items(count)]
        with suppress(StreamTaken):
            await take(slow, got)
    assert fast == list(range(count))
    assert got == list(range(len(got)))


# --- runners that go away -------------------------------------------------------------------------


async def test_elements_that_are_stored_are_skipped_when_a_handler_starts_again(
    cluster: TestCluster, feed: Feed
) -> None:
    async with asyncio.timeout(40):
        stream = aiter(cluster.client.entity(Feed, "a").items(WINDOW * 5))
        got = [await anext(stream) for _ in range(WINDOW * 2)]
        await cluster.crash()
        got += [item async for item in stream]
    assert got == list(range(WINDOW * 5))
    assert feed.log.count("begun") == 2


async def test_a_resumable_handler_goes_on_by_itself_behind_what_is_stored(
    cluster: TestCluster, feed: Feed
) -> None:
    async with asyncio.timeout(40):
        stream = aiter(cluster.client.entity(Feed, "a").resumes(WINDOW * 5))
        got = [await anext(stream) for _ in range(WINDOW * 2)]
        await cluster.crash()
        got += [item async for item in stream]
    assert got == list(range(WINDOW * 5))
    assert feed.log[0] == "from 0"
    begun = int(feed.log[1].removeprefix("from "))
    assert WINDOW * 2 - 1 <= begun <= WINDOW * 3


async def test_crashes_on_every_element_repeat_nothing_and_lose_nothing(
    cluster: TestCluster,
) -> None:
    got: list[int] = []
    async with asyncio.timeout(50):
        async for item in cluster.client.entity(Feed, "a").items(12):
            got.append(item)
            await cluster.crash()
    assert got == list(range(12))


async def test_an_interrupt_that_finds_nobody_at_work_ends_the_stream_behind_its_elements(
    feed: Feed, where: dict[str, Any]
) -> None:
    where["grace_period"] = timedelta(0)
    async with TestCluster(feed, **where) as cluster:
        receiver = await ask(cluster, "waits", before=3, after=1)
        await eventually(lambda: stored_is(cluster, receiver, range(3)))
        database = cluster.database
    async with TestCluster(Reads(), database=database, **where) as cluster:
        interrupt = Interrupt(request_id=receiver.request_id, address=address(cluster))
        await cluster.runner.sharding.interrupt(interrupt)
        receiver = await cluster.runner.sharding.await_reply(receiver.request_id)
        async with asyncio.timeout(20):
            replies = [reply async for reply in receiver.replies()]
    assert [reply.sequence for reply in replies if isinstance(reply, ReplyChunk)] == [0, 1, 2]
    assert isinstance(replies[-1], ReplyWithExit)
    assert isinstance(replies[-1].exit, Interrupted)


def address(cluster: TestCluster) -> EntityAddress:
    id = EntityId("a")
    return EntityAddress(cluster.runner.sharding.get_shard_id(FEED, id), FEED, id)


async def test_streams_move_to_a_runner_that_joins_and_delay_no_hand_over(
    feed: Feed, where: dict[str, Any]
) -> None:
    where["handover_limit"] = timedelta(hours=1)
    async with asyncio.timeout(50), TestCluster(feed, **where) as cluster:
        streams = [aiter(cluster.client.entity(Feed, f"f{n}").items(50)) for n in range(8)]
        got = [[await anext(stream)] for stream in streams]
        peer = Runner(cluster.settings, clock=cluster.clock, open_storage=cluster._open)
        async with peer.register(feed):
            await eventually(lambda: len(peer.epochs) >= 2)
            for items, stream in zip(got, streams, strict=True):
                items += [item async for item in stream]
    assert got == [list(range(50))] * 8
    assert feed.log.count("begun") > 8


async def test_an_entity_that_breaks_in_the_middle_of_a_stream_repeats_nothing(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Tally(2, 20), **where) as cluster, asyncio.TaskGroup() as group:
        got: list[int] = []
        task = group.create_task(take(cluster.client.entity(Tally, "t").give(30), got))

        async def time_passes() -> bool:
            if cluster.database is not None:
                await cluster.advance(timedelta(seconds=1))
            return task.done()

        await eventually(time_passes, timeout=30)
    assert got == list(range(30))


async def test_what_a_stream_does_to_the_state_is_saved_with_its_end(
    cluster: TestCluster,
) -> None:
    tally = cluster.client.entity(Tally, "t")
    async with asyncio.timeout(40):
        stream = aiter(tally.give(WINDOW * 3))
        got = [await anext(stream) for _ in range(WINDOW)]
        assert await tally.given() == []
        await cluster.crash()
        got += [item async for item in stream]
        assert await tally.given() == got == list(range(WINDOW * 3))


# --- definitions ----------------------------------------------------------------------------------


async def test_a_workflow_that_calls_a_stream_is_told_what_to_do_instead(
    cluster: TestCluster,
) -> None:
    with pytest.raises(ExecutionFailed, match="iterate over it in an activity"):
        await cluster.client.execute(Reads, "a")


async def test_a_stream_cannot_be_told(cluster: TestCluster) -> None:
    handle = cluster.client.entity(Feed, "a")
    with pytest.raises(ConfigurationError, match="iterate over it instead"):
        await cluster.client.tell(handle.items, 3)  # type: ignore[arg-type]


def test_only_a_stream_can_be_resumable() -> None:
    with pytest.raises(ConfigurationError, match="only a persisted stream"):

        @rpc(resumable=True)
        async def plain(self: object) -> int:
            return 1
