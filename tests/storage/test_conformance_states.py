"""Entities as ``storage.protocol`` has them, asked of both storages: the state that is written with
a reply, and the list of those that have one or have something to do."""

from datetime import UTC, datetime, timedelta

import pytest

from engine.core.clock import SystemClock
from engine.core.ids import Snowflake
from engine.storage.entities import EntityFilter, EntityRow, StateWrite, StoredState
from engine.storage.protocol import BadBatch, Commit, LaneSession
from tests.storage.world import (
    ONE,
    TWO,
    Process,
    World,
    interrupt,
    message,
    next_id,
    save_one,
    seqs_of,
    start,
    step,
    success,
)

HOUR = timedelta(hours=1)
NAME = ("Stock", "sku-1")


def state(
    version: int, payload: bytes = b"{}", *, entity: str = "sku-1", entity_type: str = "Stock"
) -> StateWrite:
    return StateWrite(entity_type=entity_type, entity_id=entity, version=version, payload=payload)


async def write(lane: LaneSession, *states: StateWrite) -> None:
    """Each in a commit of its own, all in one flush."""
    await lane.flush([Commit(shard=ONE, states=[each]) for each in states])


async def stored(process: Process, name: tuple[str, str] = NAME) -> tuple[int, bytes] | None:
    found = (await process.storage.states([name])).get(name)
    return None if found is None else (found.version, found.payload)


# --- states ---------------------------------------------------------------------------------------


async def test_a_state_is_stored_as_it_was(process: Process, lane: LaneSession) -> None:
    before = SystemClock().now() - timedelta(seconds=5)

    await write(lane, state(1, b"\x00\xff not json", entity="sku/ä ☃"))

    name = ("Stock", "sku/ä ☃")
    found = (await process.storage.states([name]))[name]
    assert before < found.saved_at < before + HOUR
    assert found == StoredState(
        entity_type="Stock",
        entity_id="sku/ä ☃",
        shard=ONE,
        version=1,
        payload=b"\x00\xff not json",
        saved_at=found.saved_at,
    )


async def test_an_entity_that_was_never_saved_has_no_state(process: Process) -> None:
    assert await process.storage.states([NAME]) == {}
    assert await process.storage.states([]) == {}


async def test_the_states_of_several_entities_are_read_together(
    process: Process, lane: LaneSession
) -> None:
    await write(
        lane,
        state(1, b"1"),
        state(4, b"2", entity="sku-2"),
        state(1, b"3", entity_type="Basket"),
    )

    wanted = [NAME, ("Basket", "sku-1"), ("Basket", "sku-2"), ("Stock", "sku-2"), NAME]
    found = await process.storage.states(wanted)

    assert {name: (each.version, each.payload) for name, each in found.items()} == {
        NAME: (1, b"1"),
        ("Basket", "sku-1"): (1, b"3"),
        ("Stock", "sku-2"): (4, b"2"),
    }


async def test_a_later_state_replaces_an_earlier_one(process: Process, lane: LaneSession) -> None:
    await write(lane, state(1, b"1"))
    first = (await process.storage.states([NAME]))[NAME].saved_at

    await write(lane, state(2, b"2"))

    found = (await process.storage.states([NAME]))[NAME]
    assert (found.version, found.payload) == (2, b"2")
    assert found.saved_at >= first


@pytest.mark.parametrize("version", [1, 2, 3])
async def test_a_state_is_never_replaced_by_one_that_is_not_later(
    process: Process, lane: LaneSession, version: int
) -> None:
    await write(lane, state(3, b"3"))

    await write(lane, state(version, b"stale"))

    assert await stored(process) == (3, b"3")


@pytest.mark.parametrize("versions", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
async def test_of_several_states_of_an_entity_in_one_flush_the_latest_is_kept(
    process: Process, lane: LaneSession, versions: tuple[int, ...]
) -> None:
    await write(lane, *(state(version, b"%d" % version) for version in versions))

    assert await stored(process) == (3, b"3")


async def test_of_several_states_of_an_entity_in_one_commit_the_latest_is_kept(
    process: Process, lane: LaneSession
) -> None:
    states = [state(2, b"2"), state(1, b"1"), state(1, b"other", entity="sku-2")]

    await lane.flush([Commit(shard=ONE, states=states)])

    assert await stored(process) == (2, b"2")
    assert await stored(process, ("Stock", "sku-2")) == (1, b"other")


async def test_a_state_and_the_reply_are_written_together(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    id = request.envelope.request_id
    taken = step(next_id(), 1)
    await lane.flush([Commit(shard=ONE, journal=[taken])])
    seqs = await seqs_of(lane)
    commit = Commit(shard=ONE, states=[state(1)], replies=[success(request)], settled=seqs)

    with pytest.raises(BadBatch):
        await lane.flush([commit, Commit(shard=ONE, journal=[taken])])
    assert await stored(process) is None
    assert list(await process.storage.replies([id])) == []

    await lane.flush([commit])
    assert await stored(process) == (1, b"{}")
    assert len(await process.storage.replies([id])) == 1
    assert await seqs_of(lane) == []


@pytest.mark.parametrize("together", [False, True])
async def test_a_state_whose_exit_comes_second_is_not_saved(
    process: Process, lane: LaneSession, together: bool
) -> None:
    request = await save_one(process, message())
    other = await save_one(process, message(entity="sku-2"))
    first = Commit(shard=ONE, replies=[success(request, b"first")])
    second = Commit(shard=ONE, replies=[success(request, b"second")], states=[state(1, b"2")])
    beside = Commit(shard=ONE, replies=[success(other)], states=[state(1, entity="sku-2")])

    if together:
        flushed = await lane.flush([first, second, beside])
    else:
        assert (await lane.flush([first])).overtaken == set()
        flushed = await lane.flush([second, beside])

    assert flushed.overtaken == {request.envelope.request_id}
    assert await stored(process) is None
    assert await stored(process, ("Stock", "sku-2")) == (1, b"{}")
    await lane.flush([Commit(shard=ONE, states=[state(1, b"3")])])
    assert await stored(process) == (1, b"3")


async def test_of_two_states_the_later_is_not_kept_when_its_exit_comes_second(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message())
    await lane.flush([Commit(shard=ONE, replies=[success(request)])])

    await lane.flush(
        [
            Commit(shard=ONE, states=[state(1, b"1")]),
            Commit(shard=ONE, states=[state(2, b"2")], replies=[success(request)]),
        ]
    )

    assert await stored(process) == (1, b"1")


async def test_a_state_outlives_its_owner(
    world: World, process: Process, lane: LaneSession
) -> None:
    await write(lane, state(1, b"1"))
    await lane.release([ONE])
    _, second = await world.runner_with_lane()
    await second.acquire([ONE])

    assert await stored(process) == (1, b"1")
    await write(second, state(2, b"2"))
    assert await stored(process) == (2, b"2")


async def test_a_large_state_is_stored_whole(process: Process, lane: LaneSession) -> None:
    payload = bytes(range(256)) * 4000

    await write(lane, state(1, payload))

    assert await stored(process) == (1, payload)


# --- entities as people see them ------------------------------------------------------------------


async def names(process: Process, filter: EntityFilter, limit: int = 100) -> list[tuple[str, str]]:
    rows = await process.storage.entities(filter, limit=limit)
    return [(row.entity_type, row.entity_id) for row in rows]


async def test_there_are_no_entities_before_somebody_speaks_to_one(process: Process) -> None:
    assert list(await process.storage.entities(EntityFilter(), limit=10)) == []


async def test_an_entity_is_seen_with_its_state_and_what_it_has_to_do(
    process: Process, lane: LaneSession
) -> None:
    requests = [message() for _ in range(3)]
    await process.storage.save(requests)
    await write(lane, state(4))
    saved = (await process.storage.states([NAME]))[NAME]

    (row,) = await process.storage.entities(EntityFilter(), limit=10)

    assert row == EntityRow(
        entity_type="Stock",
        entity_id="sku-1",
        shard=ONE,
        runner=process.runner,
        waiting=3,
        oldest=requests[0].envelope.request_id,
        version=4,
        saved_at=saved.saved_at,
    )


async def test_an_entity_without_state_is_seen_while_it_has_something_to_do(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, message(shard=TWO))
    (row,) = await process.storage.entities(EntityFilter(), limit=10)

    assert (row.shard, row.runner, row.waiting) == (TWO, None, 1)
    assert row.oldest == request.envelope.request_id
    assert (row.version, row.saved_at) == (None, None)

    await lane.acquire([TWO])
    await lane.flush([Commit(shard=TWO, settled=await _seqs(lane, request.envelope.request_id))])
    assert await names(process, EntityFilter()) == []


async def _seqs(lane: LaneSession, request_id: Snowflake) -> list[int]:
    swept = await lane.sweep([TWO], in_flight=[], resident=[], limit=10, horizon=HOUR)
    return [row.seq for row in swept.rows if row.envelope.request_id == request_id]


async def test_an_entity_that_has_only_its_state_is_seen(
    process: Process, lane: LaneSession
) -> None:
    await write(lane, state(2))

    (row,) = await process.storage.entities(EntityFilter(), limit=10)

    assert (row.waiting, row.oldest, row.version, row.shard) == (0, None, 2, ONE)


async def test_messages_of_the_future_wait_too(process: Process) -> None:
    await save_one(process, message(deliver_at=datetime.now(UTC) + HOUR))

    (row,) = await process.storage.entities(EntityFilter(), limit=10)

    assert row.waiting == 1


async def test_neither_executions_nor_interrupts_are_entities(process: Process) -> None:
    await save_one(process, start("o-1"))
    request = await save_one(process, message())
    await process.storage.interrupt([interrupt(request)])

    (row,) = await process.storage.entities(EntityFilter(), limit=10)

    assert (row.entity_type, row.waiting) == ("Stock", 1)


async def test_entities_come_by_type_and_id_in_pages(process: Process, lane: LaneSession) -> None:
    await process.storage.save([message(entity=id) for id in ("b", "B", "a", "ä", "a-1")])
    await process.storage.save([message(entity="z", entity_type="Basket")])
    await write(lane, state(1, entity="b"), state(1, entity="c"), state(1, entity_type="Till"))
    expected = [
        ("Basket", "z"),
        *(("Stock", id) for id in ("B", "a", "a-1", "b", "c", "ä")),
        ("Till", "sku-1"),
    ]

    paged: list[tuple[str, str]] = []
    while page := await names(process, EntityFilter(after=paged[-1] if paged else None), limit=3):
        paged += page

    assert paged == expected
    assert await names(process, EntityFilter()) == expected


async def test_entities_are_found_by_type_and_by_id(process: Process, lane: LaneSession) -> None:
    await process.storage.save([message(), message(entity="sku-2")])
    await write(lane, state(1, entity_type="Basket"), state(1, entity="sku-3"))

    async def found(filter: EntityFilter) -> list[tuple[str, str]]:
        return await names(process, filter)

    stock = [("Stock", id) for id in ("sku-1", "sku-2", "sku-3")]
    assert await found(EntityFilter(entity_type="Stock")) == stock
    assert await found(EntityFilter(entity_id="sku-1")) == [("Basket", "sku-1"), stock[0]]
    assert await found(EntityFilter(entity_type="Stock", entity_id="sku-3")) == [stock[2]]
    assert await found(EntityFilter(entity_type="Stock", after=("Stock", "sku-1"))) == stock[1:]
    assert await found(EntityFilter(entity_type="Nothing")) == []
