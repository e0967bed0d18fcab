"""What the in-memory storage has of its own: a clock and faults in the test's hands, and no SQL."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta

import pytest

from engine.core.clock import Alarm
from engine.core.errors import ConfigurationError, OwnershipLost, StorageUnavailable
from engine.core.journal import JournalRow
from engine.storage.memory import Fault, MemoryDatabase, MemoryStorage
from engine.storage.protocol import BadBatch, Commit, Fence, LaneSession, Storage
from engine.storage.transaction import Transaction
from tests.eventually import eventually
from tests.storage.world import (
    ONE,
    TWO,
    Process,
    World,
    ids_of,
    memory_world,
    message,
    next_id,
    start,
    step,
    sweep_of,
    take_over,
)


class Hands:
    """A clock whose hands are moved by the test."""

    def __init__(self) -> None:
        self.time = datetime(2025, 6, 1, 12, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def call_at(
        self, when: datetime, callback: Callable[[], None], *, routine: bool = False
    ) -> Alarm:
        raise NotImplementedError


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def database(clock: Hands) -> MemoryDatabase:
    return MemoryDatabase(clock)


@pytest.fixture
async def world(database: MemoryDatabase) -> AsyncIterator[World]:
    async with memory_world(database) as world:
        yield world


@pytest.fixture
async def process(world: World) -> Process:
    return await world.process()


@pytest.fixture
async def lane(process: Process) -> LaneSession:
    lane = await process.lane()
    await lane.acquire([ONE])
    return lane


async def test_rows_become_due_by_the_databases_clock(
    clock: Hands, process: Process, lane: LaneSession
) -> None:
    deliver_at = clock.now() + timedelta(days=2)
    request = message(deliver_at=deliver_at)
    await process.storage.save([request])
    before = await sweep_of(lane)

    clock.time = deliver_at

    assert (before.rows, before.next_due) == ([], deliver_at)
    assert ids_of(await sweep_of(lane)) == [request.envelope.request_id]


async def test_a_lost_owner_had_nothing_in_hand_that_was_not_due(
    clock: Hands, world: World, process: Process, lane: LaneSession
) -> None:
    future = clock.now() + timedelta(days=2)
    await process.storage.save([message(deliver_at=future), start("o-1", shard=ONE)])

    successor = await take_over(world, lane)
    clock.time = future

    rows = (await sweep_of(successor)).rows
    assert [row.failures for row in rows] == [0, 0]
    assert [row.state.failures for row in rows if row.state] == [1]


@pytest.mark.parametrize(
    ("fault", "written"), [(Fault.BEFORE_COMMIT, False), (Fault.AFTER_COMMIT, True)]
)
async def test_a_flush_can_lose_its_session_before_or_after_the_commit(
    database: MemoryDatabase, process: Process, lane: LaneSession, fault: Fault, written: bool
) -> None:
    row = step(next_id(), 1)
    database.fail_next_flush(fault)

    with pytest.raises(StorageUnavailable):
        await lane.flush([Commit(shard=ONE, journal=[row])])

    assert lane.closed
    assert list(await process.storage.history(row.execution)) == ([row] if written else [])


@pytest.mark.parametrize(("fault", "transient"), [(Fault.REFUSED, False), (Fault.LOCKED, True)])
async def test_a_flush_can_be_refused_once(
    database: MemoryDatabase, lane: LaneSession, fault: Fault, transient: bool
) -> None:
    commit = Commit(shard=ONE, journal=[step(next_id(), 1)])
    database.fail_next_flush(fault)

    with pytest.raises(BadBatch) as refused:
        await lane.flush([commit])

    assert refused.value.transient is transient
    await lane.flush([commit])


async def test_ending_a_runners_sessions_ends_no_others(
    database: MemoryDatabase, world: World, process: Process, lane: LaneSession
) -> None:
    _, other = await world.runner_with_lane()
    ended: list[str] = []
    lane.on_close(lambda: ended.append("lane"))

    assert database.end_sessions(process.runner) == 1

    await eventually(lambda: ended)
    assert (lane.closed, other.closed) == (True, False)
    assert await other.acquire([ONE]) == {ONE: 2}


async def test_a_stopped_database_refuses_everything_until_it_is_started(
    database: MemoryDatabase, process: Process, lane: LaneSession
) -> None:
    request = message()
    await process.storage.save([request])

    database.stop()

    assert lane.closed
    assert not process.storage.doorbell.healthy
    with pytest.raises(StorageUnavailable):
        await process.storage.save([message()])
    with pytest.raises(StorageUnavailable):
        await process.registry.beat(process.runner)
    with pytest.raises(StorageUnavailable):
        await process.lane()
    database.start()
    again = await process.lane()
    assert await again.acquire([ONE]) == {ONE: 2}
    assert ids_of(await sweep_of(again)) == [request.envelope.request_id]


async def test_a_write_for_a_shard_that_is_not_locked_is_a_mistake_of_the_engines(
    lane: LaneSession,
) -> None:
    with pytest.raises(OwnershipLost):
        await lane.flush([Commit(shard=TWO, journal=[step(next_id(), 1)])])


async def test_a_transaction_refuses_sql_and_says_what_to_do(
    process: Process, lane: LaneSession
) -> None:
    async def work(transaction: Transaction) -> JournalRow:
        await transaction.execute("select 1")
        return step(next_id(), 1)

    with pytest.raises(ConfigurationError, match="stub, or use PostgreSQL"):
        await process.storage.transact(Fence(shard=ONE, epoch=1, runner=process.runner), work)


async def test_starts_in_a_foreign_transaction_are_refused(process: Process) -> None:
    with pytest.raises(ConfigurationError, match="PostgreSQL"):
        await process.storage.save_on(object(), start("o-1"))


async def test_a_storage_that_was_not_opened_says_so(database: MemoryDatabase) -> None:
    storage: Storage = MemoryStorage(database)

    with pytest.raises(StorageUnavailable, match="not open"):
        await storage.save([message()])
