"""Volatile messages as their senders see them, in the owner's process and in another."""

import asyncio
import gc
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine import (
    AckChunk,
    ConfigurationError,
    EntityAddress,
    EntityId,
    EntityType,
    EnvelopeRequest,
    ExecutionFailed,
    Interrupt,
    MailboxFull,
    NoRunner,
    ReplyChunk,
    ReplyWithExit,
    RequestFailed,
    ShardId,
    Success,
    Workflow,
    rpc,
)
from engine.cluster.volatile import SentRequest
from engine.core.reply import Defect, Interrupted
from engine.storage.protocol import Post, Posted
from engine.testing import TestCluster
from tests.cluster.post import (
    Relay,
    Sender,
    Small,
    Unknown,
    Wide,
    another_runner,
    sender_elsewhere,
    sender_here,
)
from tests.eventually import eventually

WINDOW = 8
RELAY = EntityType("Relay")


class Calls(Workflow[str, int]):
    async def execute(self, request: str) -> int:
        return await self.entity(Relay, request).echo(1)


class Undoes(Workflow[str, None]):
    async def execute(self, request: str) -> None:
        self.compensate(self.entity(Relay, request).echo, 1)


@pytest.fixture
async def relay() -> Relay:
    return Relay()


@pytest.fixture
async def wide() -> Wide:
    return Wide()


@pytest.fixture
async def small() -> Small:
    return Small()


@pytest.fixture
async def cluster(
    where: dict[str, Any], relay: Relay, wide: Wide, small: Small
) -> AsyncIterator[TestCluster]:
    settings = {
        "stream_window": WINDOW,
        "poll_interval_degraded": timedelta(milliseconds=20),
        **where,
    }
    async with TestCluster(relay, wide, small, Calls(), Undoes(), **settings) as cluster:
        yield cluster


@pytest.fixture(params=[sender_here, sender_elsewhere], ids=["here", "elsewhere"])
async def sender(request: pytest.FixtureRequest, cluster: TestCluster) -> AsyncIterator[Sender]:
    opened: Callable[[TestCluster], AbstractAsyncContextManager[Sender]] = request.param
    async with opened(cluster) as sender:
        yield sender


def address(cluster: TestCluster, id: str = "a", type: EntityType = RELAY) -> EntityAddress:
    entity_id = EntityId(id)
    return EntityAddress(cluster.runner.sharding.get_shard_id(type, entity_id), type, entity_id)


async def envelope(cluster: TestCluster, tag: str, payload: bytes, **more: Any) -> EnvelopeRequest:
    return EnvelopeRequest(
        request_id=await cluster.client._node.outbox.next_id(),
        address=address(cluster),
        tag=tag,
        payload=payload,
        persisted=False,
        **more,
    )


# --- calls ------------------------------------------------------------------------------------


async def test_a_call_gives_the_handlers_result(sender: Sender) -> None:
    assert await sender.client.entity(Relay, "a").echo(1) == 1


async def test_a_handlers_exception_is_its_callers_failure_and_the_entity_goes_on(
    sender: Sender,
) -> None:
    relay = sender.client.entity(Relay, "a")
    with pytest.raises(RequestFailed, match="nothing there") as failed:
        await relay.fail()
    assert failed.value.error.type == "LookupError"
    assert await relay.echo(1) == 1


async def test_a_defect_of_the_entity_fails_the_call_that_met_it_and_it_is_not_handled_again(
    sender: Sender, relay: Relay, cluster: TestCluster
) -> None:
    with pytest.raises(RequestFailed, match="out of order"):
        await sender.client.entity(Relay, "a").explode()
    async with asyncio.TaskGroup() as group:
        again = group.create_task(sender.client.entity(Relay, "a").echo(1))
        await cluster.settle()
        if cluster.database is not None:
            await cluster.advance(timedelta(seconds=1))  # it is rebuilt
    assert again.result() == 1
    assert relay.log == ["explodes", 1]


async def test_a_type_that_the_runner_does_not_serve_is_said_so_at_once(sender: Sender) -> None:
    with pytest.raises(RequestFailed, match="does not serve Unknown") as failed:
        await sender.client.entity(Unknown, "a").echo(1)
    assert failed.value.error.type == "NotRegistered"


async def test_a_message_without_an_answer_is_delivered(sender: Sender, relay: Relay) -> None:
    await sender.client.tell(sender.client.entity(Relay, "a").echo, 7)
    await eventually(lambda: relay.log == [7])


async def test_what_one_sender_sends_arrives_in_order(sender: Sender, relay: Relay) -> None:
    handle = sender.client.entity(Relay, "a")
    for n in range(100):
        await sender.client.tell(handle.echo, n)
    await eventually(lambda: relay.log == list(range(100)))


async def test_calls_at_once_are_all_answered_and_nothing_is_left_of_them(
    sender: Sender, cluster: TestCluster
) -> None:
    handle = sender.client.entity(Wide, "w")
    await handle.echo(-1)
    before = futures()
    for start in range(0, 3_000, 500):
        await echo_all(handle, range(start, start + 500))
    assert left_of(sender, cluster) == [0] * 6
    await eventually(lambda: futures() <= before + 50, every=0.2)


async def echo_all(handle: Relay, numbers: range) -> None:
    async with asyncio.TaskGroup() as group:
        calls = [group.create_task(handle.echo(n)) for n in numbers]
    assert [call.result() for call in calls] == list(numbers)


def in_hand(cluster: TestCluster) -> int:
    """How many volatile requests the runner has taken and not answered."""
    incarnation = cluster.runner._incarnation
    assert incarnation is not None
    return len(incarnation.reception)


def left_of(sender: Sender, cluster: TestCluster) -> list[int]:
    """What senders and owners remember of volatile requests."""
    mail, board = sender.node.mail, sender.node.replies
    return [
        len(mail.volatile),
        len(board._waiting),
        len(board._volatile),
        len(mail.postbox._queue),
        len(mail.postbox._under_way),
        in_hand(cluster),
    ]


def futures() -> int:
    gc.collect()
    return sum(isinstance(each, asyncio.Future) for each in gc.get_objects())


async def test_a_caller_that_gives_up_leaves_nothing_behind(
    sender: Sender, cluster: TestCluster, relay: Relay
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await sender.client.entity(Relay, "a").wait()
    relay.go.set()
    await eventually(lambda: left_of(sender, cluster) == [0] * 6)


async def test_headers_and_trace_arrive(cluster: TestCluster, sender: Sender) -> None:
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"

    class Reader(Relay):
        @rpc(persisted=False)
        async def read(self) -> list[str | None]:
            return [self.headers["who"], self.trace]

    cluster.runner.register(Reader())
    handle = sender.client.entity(Reader, "r", headers={"who": "me"}, trace=trace)
    assert await handle.read() == ["me", trace]


# --- mailboxes --------------------------------------------------------------------------------


async def test_a_full_mailbox_is_told_at_once(
    sender: Sender, cluster: TestCluster, small: Small
) -> None:
    handle = sender.client.entity(Small, "s")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(handle.wait())
        await eventually(lambda: small.log == ["begun"])
        queued = group.create_task(handle.wait())
        await eventually(lambda: in_hand(cluster) == 2)
        async with asyncio.timeout(5):
            with pytest.raises(MailboxFull, match="mailbox_capacity"):
                await handle.echo(1)
        small.go.set()
    assert [running.result(), queued.result()] == ["done", "done"]
    assert small.log.count("begun") == 2
    assert await handle.echo(2) == 2


async def test_a_busy_runner_has_no_place_for_another_entity(where: dict[str, Any]) -> None:
    relay = Relay()
    async with TestCluster(relay, max_resident=1, **where) as cluster:
        async with asyncio.TaskGroup() as group:
            busy = group.create_task(cluster.client.entity(Relay, "a").wait())
            await eventually(lambda: relay.log == ["begun"])
            with pytest.raises(MailboxFull, match="max_resident"):
                await cluster.client.entity(Relay, "b").echo(1)
            relay.go.set()
        assert busy.result() == "done"
        assert await cluster.client.entity(Relay, "b").echo(1) == 1


# --- streams ----------------------------------------------------------------------------------


async def test_a_stream_comes_complete_and_in_order(sender: Sender) -> None:
    got = [item async for item in sender.client.entity(Relay, "a").items(500)]
    assert got == list(range(500))


async def test_a_streams_producer_keeps_within_its_window(sender: Sender, relay: Relay) -> None:
    async with aclosing(sender.client.entity(Relay, "a").items(100)) as items:  # type: ignore[type-var]
        assert await anext(items) == 0
        await eventually(lambda: relay.log[-1:] == [WINDOW - 1])
        for number in range(1, 20):
            assert await anext(items) == number
            produced = [each for each in relay.log if isinstance(each, int)]
            assert len(produced) <= number + WINDOW


async def test_an_error_after_chunks_comes_after_them(sender: Sender) -> None:
    got: list[int] = []
    with pytest.raises(RequestFailed, match="no more"):
        await take(sender.client.entity(Relay, "a").breaks(5), got)
    assert got == [0, 1, 2, 3, 4]


async def take(stream: AsyncIterator[int], got: list[int]) -> None:
    async for item in stream:
        got.append(item)  # noqa: PERF401 what came before an error counts too


async def test_a_consumer_that_goes_away_ends_the_producer(
    sender: Sender, cluster: TestCluster, relay: Relay
) -> None:
    async for item in sender.client.entity(Relay, "a").items(100):
        if item == 3:
            break
    await eventually(lambda: relay.log[-1:] == ["closed"])
    await eventually(lambda: left_of(sender, cluster) == [0] * 6)


async def test_a_consumer_that_is_cancelled_while_its_call_is_sent_ends_the_producer(
    cluster: TestCluster, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sender_elsewhere(cluster) as sender:
        storage, posting, go = sender.node.storage, asyncio.Event(), asyncio.Event()
        post = storage.post

        async def slowly(messages: Sequence[Post]) -> Sequence[Posted]:
            posting.set()
            await go.wait()
            return await post(messages)

        monkeypatch.setattr(storage, "post", slowly)
        call = asyncio.create_task(take(sender.client.entity(Relay, "a").items(100), []))
        await posting.wait()
        call.cancel()
        await asyncio.wait([call])
        go.set()
        async with asyncio.timeout(20):
            assert await sender.client.entity(Relay, "a").echo(-1) == -1
        assert relay.log.count("begun") == relay.log.count("closed")
        await eventually(lambda: left_of(sender, cluster) == [0] * 6)


@pytest.mark.parametrize("leaves", [False, True])
async def test_nothing_is_stored_of_a_stream_that_is_made_more_quickly_than_it_is_taken(
    sender: Sender, relay: Relay, leaves: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def stores(*_: object, **__: object) -> None:
        asked.append("stored")

    for statement in ("acknowledge", "interrupt"):
        monkeypatch.setattr(sender.node.storage, statement, stores)
    async with aclosing(sender.client.entity(Relay, "a").items(5)) as items:  # type: ignore[type-var]
        async for item in items:
            await eventually(lambda: relay.log[-1] == "closed")
            if leaves and item == 1:
                break
    assert await sender.client.entity(Relay, "b").store(1) == 1
    assert asked == []


async def test_a_stream_that_was_sent_by_hand_goes_on_as_it_is_acknowledged(
    cluster: TestCluster, relay: Relay
) -> None:
    sharding = cluster.runner.sharding
    request = await envelope(cluster, "items", b'{"count":20}')
    receiver = await sharding.send(request)
    got: list[int] = []
    async for reply in receiver.replies():
        if isinstance(reply, ReplyChunk):
            assert reply.sequence == len(got)
            got.append(int(reply.value))
            ack = AckChunk(request_id=request.request_id, id=request.request_id, sequence=got[-1])
            await sharding.ack_chunk(ack)
        else:
            assert reply == ReplyWithExit(request_id=request.request_id, exit=Success(b"null"))
    assert got == list(range(20))
    assert await receiver == Success(b"null")


# --- interrupts -------------------------------------------------------------------------------


async def test_a_running_request_is_interrupted(cluster: TestCluster, relay: Relay) -> None:
    sharding = cluster.runner.sharding
    request = await envelope(cluster, "wait", b"{}")
    receiver = await sharding.send(request)
    await eventually(lambda: relay.log == ["begun"])
    await sharding.interrupt(Interrupt(request_id=request.request_id, address=request.address))
    assert await receiver == Interrupted("")
    assert relay.log == ["begun", "ended"]


async def test_a_request_of_another_process_is_interrupted_there(
    cluster: TestCluster, relay: Relay
) -> None:
    async with sender_elsewhere(cluster) as sender:
        request = await envelope(cluster, "wait", b"{}")
        kept = sender.node.replies.keep(request.request_id)
        await sender.node.sender.send(request, wait=True)
        await eventually(lambda: relay.log == ["begun"])
        sender.node.mail.volatile.interrupt(request.request_id)
        assert await kept.exit == Interrupted("")


async def test_an_uninterruptible_handler_ends_by_itself(
    cluster: TestCluster, relay: Relay
) -> None:
    sharding = cluster.runner.sharding
    request = await envelope(
        cluster, "insist", b"{}", uninterruptible=Relay.insist.__outlast_rpc__.uninterruptible
    )  # type: ignore[attr-defined]
    receiver = await sharding.send(request)
    await eventually(lambda: relay.log == ["begun"])
    await sharding.interrupt(Interrupt(request_id=request.request_id, address=request.address))
    relay.go.set()
    assert await receiver == Success(b'"done"')


# --- what is refused --------------------------------------------------------------------------


async def test_what_only_a_stored_message_can_do_is_refused_at_the_call(sender: Sender) -> None:
    later = datetime(2030, 1, 1, tzinfo=UTC)
    with pytest.raises(ConfigurationError, match="later time"):
        await sender.client.entity(Relay, "a", at=later).echo(1)
    with pytest.raises(ConfigurationError, match="deduplicated"):
        await sender.client.entity(Relay, "a", key="once").echo(1)
    with pytest.raises(ConfigurationError, match="deduplicated"):

        class _Keyed(Relay):
            @rpc(persisted=False, key=lambda n: n)
            async def keyed(self, n: str) -> None: ...


async def test_a_workflow_may_not_call_it(cluster: TestCluster) -> None:
    for workflow in (Calls, Undoes):
        with pytest.raises(ExecutionFailed, match="volatile"):
            await cluster.client.execute(workflow, "a", key=workflow.name)


async def test_an_address_on_the_wrong_shard_is_refused(cluster: TestCluster) -> None:
    right = address(cluster)
    wrong = EntityAddress(
        ShardId("default", right.shard.number % 8 + 1), right.entity_type, right.entity_id
    )
    request = await envelope(cluster, "echo", b'{"n":1}')
    with pytest.raises(ConfigurationError, match="does not live on shard"):
        await cluster.runner.sharding.send(
            EnvelopeRequest(
                request_id=request.request_id,
                address=wrong,
                tag="echo",
                payload=b'{"n":1}',
                persisted=False,
            )
        )


async def test_one_request_id_cannot_be_used_twice(cluster: TestCluster, relay: Relay) -> None:
    sharding = cluster.runner.sharding
    request = await envelope(cluster, "wait", b"{}")
    receiver = await sharding.send(request)
    with pytest.raises(ConfigurationError, match="id of its own"):
        await sharding.send(request)
    with pytest.raises(ConfigurationError, match="id of its own"):
        await sharding.notify(request)
    relay.go.set()
    assert await receiver == Success(b'"done"')
    assert relay.log.count("begun") == 1


# --- owners come and go -----------------------------------------------------------------------


async def test_without_a_runner_the_sender_is_told_after_a_while(where: dict[str, Any]) -> None:
    cluster = TestCluster(Relay(), volatile_patience=timedelta(seconds=0.2), **where)
    async with sender_elsewhere(cluster) as sender:
        handle = sender.client.entity(Relay, "a")
        for call in (handle.echo(1), sender.client.tell(handle.echo, 1)):
            with pytest.raises(NoRunner, match="start a runner of group 'default'"):
                await call
        async with cluster:
            assert await handle.echo(2) == 2
        with pytest.raises(NoRunner):
            await handle.echo(3)


async def test_what_is_sent_while_nobody_owns_the_shard_reaches_the_next_owner_in_order(
    where: dict[str, Any],
) -> None:
    relay = Relay()
    cluster = TestCluster(relay, **where)
    async with sender_elsewhere(cluster) as sender, asyncio.TaskGroup() as group:
        handle = sender.client.entity(Relay, "a")
        calls: list[asyncio.Task[int]] = []
        for n in range(20):
            calls.append(group.create_task(handle.echo(n)))
            await eventually(lambda: len(sender.node.mail.volatile) == len(calls))
        async with cluster:
            assert [await call for call in calls] == list(range(20))
        assert relay.log == list(range(20))


async def test_while_shards_move_every_call_is_answered_once_and_in_order(
    cluster: TestCluster, sender: Sender, relay: Relay
) -> None:
    moving = asyncio.Event()
    ids = [f"e{n}" for n in range(8)]
    said: dict[str, list[int]] = {}
    answered: dict[str, list[int]] = {id: [] for id in ids}

    async def call(id: str) -> None:
        handle, n = sender.client.entity(Sequence, id), 0
        while not moving.is_set():
            await sender.client.tell(handle.note, n)
            answered[id].append(await handle.note(n + 1))
            n += 2

    class Sequence(Relay):
        @rpc(persisted=False)
        async def note(self, n: int) -> int:
            said.setdefault(self.entity_id, []).append(n)
            await asyncio.sleep(0)
            return n

    cluster.runner.register(Sequence())
    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        for id in ids:
            group.create_task(call(id))
        for _ in range(3):
            async with another_runner(cluster, Relay(), Wide(), Small(), Sequence()) as other:
                await eventually(lambda r=other: bool(r.epochs), timeout=20)
            await eventually(lambda: len(cluster.runner.epochs) == 8, timeout=20)
        moving.set()
    for id in ids:
        assert said[id] == sorted(set(said[id]))
        assert answered[id] == list(range(1, 2 * len(answered[id]), 2))
        assert set(answered[id]) <= set(said[id])
        assert len(said[id]) > 1.5 * len(answered[id])


async def test_a_call_that_runs_when_its_shard_is_lost_ends_with_that_error(
    cluster: TestCluster, sender: Sender, relay: Relay
) -> None:
    async with asyncio.TaskGroup() as group:
        call = group.create_task(raised(sender.client.entity(Relay, "a").wait()))
        await eventually(lambda: relay.log == ["begun"])
        await cluster.crash()
    error = call.result()
    assert isinstance(error, RequestFailed)
    assert error.error.type == "RunnerLost"
    assert relay.log == ["begun", "ended"]
    assert await sender.client.entity(Relay, "a").echo(1) == 1


async def raised(call: Any) -> BaseException | None:
    try:
        await call
    except Exception as error:  # noqa: BLE001
        return error
    return None


async def test_what_waits_in_a_mailbox_goes_to_the_next_owner(
    cluster: TestCluster, sender: Sender, relay: Relay
) -> None:
    handle = sender.client.entity(Relay, "a")
    async with asyncio.TaskGroup() as group:
        running = group.create_task(raised(handle.wait()))
        await eventually(lambda: relay.log == ["begun"])
        queued = [group.create_task(handle.echo(n)) for n in range(5)]
        await eventually(lambda: in_hand(cluster) == 6)
        await cluster.crash()
    assert isinstance(running.result(), RequestFailed)
    assert [each.result() for each in queued] == [0, 1, 2, 3, 4]
    assert relay.log == ["begun", "ended", 0, 1, 2, 3, 4]


async def test_an_exit_that_never_comes_is_a_defect_to_who_sent_by_hand(
    cluster: TestCluster, relay: Relay
) -> None:
    receiver = await cluster.runner.sharding.send(await envelope(cluster, "wait", b"{}"))
    await eventually(lambda: relay.log == ["begun"])
    await cluster.crash()
    exit = await receiver
    assert isinstance(exit, Defect)
    assert exit.error.type == "RunnerLost"


async def test_a_request_that_arrives_before_its_sender_knows_where_it_went_holds_nothing_up(
    cluster: TestCluster, relay: Relay
) -> None:
    volatile = cluster.client._node.mail.volatile
    sent = SentRequest(volatile, await envelope(cluster, "wait", b"{}"), awaited=False)
    volatile._sent[sent.id] = sent
    volatile.arrived(sent.envelope)  # by post to this very process
    volatile.posted(sent, cluster.runner.id)  # and only then the answer of that statement

    assert await cluster.client.entity(Relay, "a").echo(1) == 1
