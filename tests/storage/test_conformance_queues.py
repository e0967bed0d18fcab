"""Queues as ``storage.protocol`` has them, asked of both storages: what their owner writes at once,
and what comes of it for the shards that process the items."""

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from engine.core.envelope import Interrupt, ReplyTo
from engine.core.ids import Snowflake
from engine.core.reply import Interrupted, ReplyKind, Success, encode_exit
from engine.storage.protocol import (
    Commit,
    InboxKind,
    InboxRow,
    LaneSession,
    SaveRequest,
    exit_reply,
)
from engine.storage.queues import Line, QueueItem, QueueRow, QueueWrite
from tests.storage.world import NOW, ONE, TWO, Process, World, message, next_id, sweep_of, take_over


async def arrived(
    process: Process, lane: LaneSession, key: str = "", n: int = 1
) -> list[QueueItem]:
    """Items that wait, stored in order, with their own rows settled."""
    items = [await stored(process, key) for _ in range(n)]
    rows = [item.seq for item in items]
    await lane.dispatch(QueueWrite(queue="Parcels", shard=ONE, arrived=items, settled=rows))
    return items


async def stored(process: Process, key: str = "", *, reply_to: ReplyTo | None = None) -> QueueItem:
    """An item whose request is stored, and nothing else yet."""
    (saved,) = await process.storage.save([message(reply_to=reply_to)])
    assert saved.seq is not None
    return QueueItem(request_id=saved.request_id, seq=saved.seq, priority=0, key=key)


async def choose(
    lane: LaneSession, *lines: Line, to: Sequence[int], freed: Sequence[Snowflake] = ()
) -> list[QueueItem]:
    write = QueueWrite(queue="Parcels", shard=ONE, lines=lines, targets=to, freed=freed)
    return list((await lane.dispatch(write)).chosen)


@pytest.fixture
async def lane(process: Process, world: World) -> LaneSession:
    """The only runner's lane; it holds the queue's shard and one that processes."""
    lane = await process.lane()
    world.stack.push_async_callback(lane.close)
    assert (await lane.acquire([ONE, TWO])).keys() == {ONE, TWO}
    return lane


async def rows_of(lane: LaneSession, kind: InboxKind) -> list[InboxRow]:
    return [row for row in (await sweep_of(lane, ONE, TWO)).rows if row.kind is kind]


def line(key: str, count: int) -> Line:
    return Line(priority=0, key=key, count=count)


async def test_items_that_arrive_wait_and_their_rows_are_settled(
    process: Process, lane: LaneSession
) -> None:
    await arrived(process, lane, "a", n=2)
    await arrived(process, lane, "b")

    contents = await process.storage.queue("Parcels")
    assert sorted((each.key, each.count) for each in contents.waiting) == [("a", 2), ("b", 1)]
    assert contents.held == []
    assert contents.row is None
    assert (await sweep_of(lane, ONE, TWO)).rows == []


async def test_the_oldest_of_each_line_are_admitted_to_the_shards_in_turn(
    process: Process, lane: LaneSession
) -> None:
    first, second, third = await arrived(process, lane, "a", n=3)
    (other,) = await arrived(process, lane, "b")

    chosen = await choose(lane, line("b", 1), line("a", 2), to=[2, 1, 2])

    assert sorted(chosen, key=lambda item: item.seq) == [
        replace(first, shard=1),
        replace(second, shard=2),
        replace(other, shard=2),
    ]
    found = await rows_of(lane, InboxKind.ADMITTED)
    assert {(row.envelope.request_id, row.shard) for row in found} == {
        (first.request_id, ONE),
        (second.request_id, TWO),
        (other.request_id, TWO),
    }
    assert all(row.envelope.address.shard == ONE for row in found)
    contents = await process.storage.queue("Parcels")
    assert contents.waiting == [line("a", 1)]
    assert sorted(item.request_id for item in contents.held) == [
        first.request_id,
        second.request_id,
        other.request_id,
    ]
    assert await choose(lane, line("a", 5), to=[1] * 5) == [replace(third, shard=1)]


async def test_an_item_can_be_admitted_as_it_arrives(process: Process, lane: LaneSession) -> None:
    item = replace(await stored(process, "é"), priority=-3, shard=2)

    await lane.dispatch(QueueWrite(queue="Parcels", shard=ONE, arrived=[item], settled=[item.seq]))

    (row,) = (await sweep_of(lane, ONE, TWO)).rows
    assert (row.kind, row.shard) == (InboxKind.ADMITTED, TWO)
    assert (await process.storage.queue("Parcels")).held == [item]


async def test_the_end_of_an_item_goes_to_its_queue(process: Process, lane: LaneSession) -> None:
    (item,) = await arrived(process, lane)
    await choose(lane, line("", 1), to=[2])
    (row,) = await rows_of(lane, InboxKind.ADMITTED)

    exit = exit_reply(item.request_id, Success(b"1"))
    await lane.flush([Commit(shard=TWO, replies=[exit], settled=[row.seq])])

    (freed,) = (await sweep_of(lane, ONE, TWO)).rows
    assert (freed.kind, freed.shard) == (InboxKind.FREED, ONE)
    assert freed.envelope.request_id == item.request_id
    assert freed.execution is None
    assert len((await process.storage.queue("Parcels")).held) == 1  # until its queue has read that
    await lane.dispatch(
        QueueWrite(queue="Parcels", shard=ONE, freed=[item.request_id], settled=[freed.seq])
    )
    assert (await process.storage.queue("Parcels")).held == []
    assert (await sweep_of(lane, ONE, TWO)).rows == []


async def test_what_is_freed_in_a_write_is_not_chosen_by_it(
    process: Process, lane: LaneSession
) -> None:
    first, second = await arrived(process, lane, n=2)

    assert await choose(lane, line("", 1), to=[1], freed=[first.request_id]) == [
        replace(second, shard=1)
    ]


async def test_an_item_that_is_put_off_waits_when_it_is_ripe(
    process: Process, lane: LaneSession
) -> None:
    since = NOW - timedelta(minutes=1)
    item = replace(await stored(process, "a"), due_at=NOW, debounce="x", since=since)
    await lane.dispatch(QueueWrite(queue="Parcels", shard=ONE, arrived=[item]))
    assert (await process.storage.queue("Parcels")).held == [item]
    assert await choose(lane, line("a", 1), to=[1]) == []

    await lane.dispatch(QueueWrite(queue="Parcels", shard=ONE, ripe=[item.request_id]))

    contents = await process.storage.queue("Parcels")
    assert (contents.waiting, contents.held) == ([line("a", 1)], [])


async def test_an_item_that_its_queue_ends_is_answered(process: Process, lane: LaneSession) -> None:
    reply_to = ReplyTo(execution=next_id(), shard=TWO)
    item = await stored(process, reply_to=reply_to)
    ended = [(item.request_id, *encode_exit(Interrupted("too late")))]

    end = QueueWrite(queue="Parcels", shard=ONE, ended=ended)
    told = [(await lane.dispatch(end)).told for _ in range(2)]

    assert told == [[TWO], []]  # the first exit stays
    (reply,) = await process.storage.replies([item.request_id])
    assert reply.kind is ReplyKind.INTERRUPTED
    (row,) = await rows_of(lane, InboxKind.REPLY)
    assert (row.shard, row.execution) == (TWO, reply_to.execution)


async def test_an_interrupt_goes_on_to_where_the_item_is(
    process: Process, lane: LaneSession
) -> None:
    (item,) = await arrived(process, lane)
    await choose(lane, line("", 1), to=[2])
    (admitted,) = await rows_of(lane, InboxKind.ADMITTED)
    interrupt = Interrupt(request_id=item.request_id, address=admitted.envelope.address)
    assert await process.storage.interrupt([interrupt]) == [True]
    (row,) = await rows_of(lane, InboxKind.INTERRUPT)
    assert (row.shard, row.target) == (ONE, None)

    await lane.dispatch(
        QueueWrite(
            queue="Parcels",
            shard=ONE,
            settled=[row.seq],
            interrupted=[(item.request_id, 2)],
        )
    )

    (row,) = await rows_of(lane, InboxKind.INTERRUPT)
    assert (row.shard, row.target) == (TWO, admitted.seq)


async def test_a_queue_is_stored_as_it_stands_and_its_items_are_counted(
    process: Process, lane: LaneSession
) -> None:
    settings = json.dumps({"declared": {"concurrency": 3}}).encode()
    row = QueueRow(name="Parcels", shard=ONE, settings=settings)
    await lane.dispatch(QueueWrite(queue="Parcels", shard=ONE, row=row))
    _, second, _ = await arrived(process, lane, n=3)
    await choose(lane, line("", 1), to=[2])
    paused = replace(row, paused=True, next_at=NOW)

    await lane.dispatch(QueueWrite(queue="Parcels", shard=ONE, row=paused))

    (counts,) = await process.storage.queues()
    assert json.loads(counts.row.settings) == json.loads(settings)
    assert replace(counts.row, settings=settings) == replace(paused, runner=process.runner)
    assert (counts.waiting, counts.delayed, counts.running) == (2, 0, 1)
    assert counts.oldest == second.request_id
    assert await process.storage.queues(["Letters"]) == []


async def test_items_are_counted_before_their_owner_has_taken_them_in(
    process: Process, lane: LaneSession
) -> None:
    row = QueueRow(name="Parcels", shard=ONE, settings=b"{}")
    await lane.dispatch(QueueWrite(queue="Parcels", shard=ONE, row=row))
    due = [arriving(), arriving(deliver_at=NOW - timedelta(days=1))]
    others = [arriving(entity_type="queue:Letters"), arriving(tag="pause"), message()]
    later = arriving(deliver_at=datetime.now(UTC) + timedelta(days=1))

    await process.storage.save([*due, later, *others])

    (counts,) = await process.storage.queues(["Parcels"])
    assert (counts.waiting, counts.delayed, counts.running) == (2, 1, 0)
    assert counts.oldest == due[0].envelope.request_id


def arriving(
    *,
    entity_type: str = "queue:Parcels",
    tag: str = "process",
    deliver_at: datetime | None = None,
) -> SaveRequest:
    """An item in the inbox of its queue."""
    request = message(entity_type=entity_type, deliver_at=deliver_at)
    return replace(request, envelope=replace(request.envelope, tag=tag))


async def test_an_admitted_item_is_counted_as_failed_when_its_owner_is_lost(
    world: World, process: Process, lane: LaneSession
) -> None:
    await arrived(process, lane)
    await choose(lane, line("", 1), to=[2])
    lane.terminate()

    other = await take_over(world, lane, ONE, TWO)

    (row,) = await rows_of(other, InboxKind.ADMITTED)
    assert row.failures == 1
