"""Where messages and items are, as ``Storage.place`` has it, asked of both storages."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from engine.core.ids import Snowflake
from engine.core.reply import Success
from engine.storage.places import Holder, Place
from engine.storage.protocol import Commit, LaneSession, SaveRequest, exit_reply
from engine.storage.queues import Line, QueueItem, QueueWrite
from tests.storage.world import ONE, TWO, Process, World, message, start

TOMORROW = (datetime.now(UTC) + timedelta(days=1)).replace(microsecond=0)


@pytest.fixture
async def lane(process: Process, world: World) -> LaneSession:
    """The only runner's lane, which holds both shards."""
    lane = await process.lane()
    world.stack.push_async_callback(lane.close)
    assert (await lane.acquire([ONE, TWO])).keys() == {ONE, TWO}
    return lane


async def place(process: Process, request: SaveRequest) -> Place | None:
    return await process.storage.place(request.envelope.request_id)


def found(process: Process, request: SaveRequest) -> Place:
    """One for which nobody has to go first."""
    envelope = request.envelope
    return Place(
        request_id=envelope.request_id,
        address=envelope.address,
        tag=envelope.tag,
        runner=process.runner,
    )


async def test_a_message_is_behind_those_that_came_for_its_entity_before(
    process: Process, lane: LaneSession
) -> None:
    later, first, other, second, third = (
        message(deliver_at=TOMORROW),
        message(),
        message(entity="sku-2"),
        message(),
        message(),
    )
    await process.storage.save([later, first, other, second, third])
    holder = Holder(
        request_id=first.envelope.request_id, id="sku-1", tag="reserve", runner=process.runner
    )

    assert await place(process, first) == found(process, first)
    assert await place(process, third) == replace(found(process, third), ahead=2, holder=holder)
    assert await place(process, later) == replace(found(process, later), due_at=TOMORROW)


async def test_what_has_ended_and_what_is_no_message_has_no_place(
    process: Process, lane: LaneSession
) -> None:
    asked = message()
    (saved,) = await process.storage.save([asked])
    assert saved.seq is not None
    exit = exit_reply(asked.envelope.request_id, Success(b"1"))
    await lane.flush([Commit(shard=ONE, replies=[exit], settled=[saved.seq])])
    begun = start("o-1")
    await process.storage.save([begun])

    assert await place(process, asked) is None
    assert await place(process, begun) is None
    assert await process.storage.place(Snowflake(7)) is None


async def test_an_item_waits_for_those_of_its_key(process: Process, lane: LaneSession) -> None:
    requests = [message() for _ in range(5)]
    saved = await process.storage.save(requests)
    runs, second, third, foreign, late = requests
    keys = ["a", "a", "a", "b", "a"]
    items = [
        QueueItem(request_id=each.request_id, seq=each.seq or 0, priority=0, key=key, debounce=None)
        for each, key in zip(saved, keys, strict=True)
    ]
    items[4] = replace(items[4], due_at=TOMORROW, debounce="x", since=TOMORROW)
    settled = [item.seq for item in items]
    await lane.dispatch(QueueWrite(queue="Parcels", shard=ONE, arrived=items, settled=settled))
    line = Line(priority=0, key="a", count=1)
    await lane.dispatch(QueueWrite(queue="Parcels", shard=ONE, lines=[line], targets=[2]))
    holder = Holder(
        request_id=runs.envelope.request_id, id="sku-1", tag="reserve", runner=process.runner
    )
    behind = replace(found(process, third), key="a", ahead=1, running=1, holder=holder)

    assert await place(process, runs) == replace(found(process, runs), key="a", admitted=True)
    assert await place(process, third) == behind
    assert await place(process, second) == replace(
        behind, request_id=second.envelope.request_id, ahead=0
    )
    assert await place(process, foreign) == replace(found(process, foreign), key="b")
    exit = exit_reply(runs.envelope.request_id, Success(b"1"))
    await lane.flush([Commit(shard=TWO, replies=[exit])])
    assert await place(process, runs) is None  # though its queue has not heard of that yet
    assert await place(process, third) == behind
    delayed = await place(process, late)
    assert delayed is not None
    assert (delayed.due_at, delayed.admitted) == (TOMORROW, False)
