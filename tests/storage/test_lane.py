"""A lane's queue over a scripted session: what it writes, and what it must not write any more."""

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import pytest

from engine.core.errors import OwnershipLost
from engine.core.ids import ShardId, Snowflake
from engine.core.journal import JournalKind, JournalRow
from engine.storage.lane import Lane
from engine.storage.protocol import BadBatch, Commit, Flushed, Sweep
from tests.eventually import eventually

ONE, TWO = ShardId("default", 1), ShardId("default", 2)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Session:
    """Remembers what was flushed; refuses commits of a shard in ``locked`` for a while."""

    def __init__(self) -> None:
        self.closed = False
        self.flushed: list[Commit] = []
        self.statements: list[int] = []
        self.swept: list[tuple[ShardId, ...]] = []
        self.locked: set[ShardId] = set()
        self.epochs: dict[ShardId, int] = {}
        self._closing: list[Callable[[], None]] = []

    def on_close(self, callback: Callable[[], None]) -> None:
        self._closing.append(callback)

    async def acquire(self, shards: Sequence[ShardId]) -> Mapping[ShardId, int]:
        for shard in shards:
            self.epochs[shard] = self.epochs.get(shard, 0) + 1
        return {shard: self.epochs[shard] for shard in shards}

    async def release(self, shards: Sequence[ShardId]) -> None:
        await asyncio.sleep(0)

    async def flush(self, commits: Sequence[Commit]) -> Flushed:
        if any(commit.shard in self.locked for commit in commits):
            raise BadBatch("a lock", transient=True)
        self.flushed += commits
        self.statements.append(len(commits))
        await asyncio.sleep(0)
        return Flushed(requests={}, replies={})

    async def sweep(self, shards: Sequence[ShardId], **_: object) -> Sweep:
        self.swept.append(tuple(sorted(shards)))
        return Sweep(rows=[], due=[], next_due=None, more=False, now=NOW)

    def terminate(self) -> None:
        self.closed = True
        for callback in self._closing:
            callback()

    async def close(self) -> None:
        self.terminate()


class Sink:
    def in_flight(self, shards: Collection[ShardId]) -> Sequence[int]:
        return []

    def resident(self, shards: Collection[ShardId]) -> Sequence[Snowflake]:
        return []

    def held(self, shards: Collection[ShardId]) -> Sequence[int]:
        return []

    def admitted(self, shards: Collection[ShardId]) -> Sequence[int] | None:
        return None

    def floors(self, shards: Collection[ShardId]) -> Sequence[int]:
        return [0] * len(shards)

    def swept(self, shards: Collection[ShardId], sweep: Sweep) -> None: ...
    def lane_opened(self, lane: Lane) -> None: ...
    def lane_lost(self, lane: Lane) -> None: ...


class Source:
    """One commit of one shard."""

    def __init__(self, shard: ShardId, payload: bytes = b"") -> None:
        row = JournalRow(
            execution=Snowflake(1), run=1, position=1, kind=JournalKind.STEP, name="a",
            ordinal=0, at=NOW, payload=payload,
        )  # fmt: skip
        self.commit = Commit(shard=shard, journal=[row])
        self.done = False

    def collect(self) -> Commit:
        return self.commit

    def committed(self, flushed: Flushed) -> None:
        self.done = True

    def refused(self, error: BadBatch) -> None:
        raise error


@asynccontextmanager
async def lane_over(
    *sessions: Session, poll: timedelta = timedelta(seconds=5)
) -> AsyncIterator[Lane]:
    """It opens them one after the other."""

    async def open_session() -> Session:
        return next(session for session in sessions if not session.closed)

    lane = Lane(
        index=0,
        open_session=open_session,
        sink=Sink(),
        poll=lambda: poll,
        horizon=timedelta(0),
    )
    async with lane:
        await eventually(lambda: lane.connected)
        yield lane


class Ending(Session):
    """Ends once it has given an answer to an order, and before the lane has it."""

    async def _end(self) -> None:
        self.terminate()
        for _ in range(3):
            await asyncio.sleep(0)


class EndsAcquiring(Ending):
    async def acquire(self, shards: Sequence[ShardId]) -> Mapping[ShardId, int]:
        gotten = await super().acquire(shards)
        await self._end()
        return gotten


class EndsReleasing(Ending):
    async def release(self, shards: Sequence[ShardId]) -> None:
        await super().release(shards)
        await self._end()


async def test_a_lane_does_not_own_what_a_session_has_locked_that_ended_since() -> None:
    first, second = EndsAcquiring(), Session()
    async with lane_over(first, second) as lane:
        assert await lane.acquire([ONE, TWO]) == {}
        assert not lane.shards
        await eventually(lambda: lane.generation == 2 and lane.connected)
        assert await lane.acquire([ONE]) == lane.shards == {ONE: 1}


async def test_a_lane_goes_on_after_a_session_that_ended_as_it_gave_a_shard_away() -> None:
    first, second = EndsReleasing(), Session()
    async with lane_over(first, second) as lane:
        await lane.acquire([ONE, TWO])
        await lane.release([ONE])
        assert not lane.shards
        await eventually(lambda: lane.generation == 2 and lane.connected)
        assert await lane.acquire([ONE]) == lane.shards == {ONE: 1}


async def test_a_commit_that_met_a_lock_is_written_when_the_lock_is_gone() -> None:
    session = Session()
    async with lane_over(session) as lane:
        await lane.acquire([ONE, TWO])
        session.locked = {ONE}
        held_up, other = Source(ONE), Source(TWO)
        lane.submit(held_up, lane.generation)
        lane.submit(other, lane.generation)
        await eventually(lambda: other.done)
        assert not held_up.done
        session.locked = set()
        await eventually(lambda: held_up.done)
        assert [commit.shard for commit in session.flushed] == [TWO, ONE]


@pytest.mark.parametrize("taken_again", [False, True], ids=["given away", "taken again"])
async def test_a_commit_set_aside_is_not_written_once_its_epoch_is_over(taken_again: bool) -> None:
    session = Session()
    async with lane_over(session) as lane:
        await lane.acquire([ONE, TWO])
        session.locked = {ONE}
        held_up, other = Source(ONE), Source(TWO)
        lane.submit(held_up, lane.generation)
        lane.submit(other, lane.generation)
        await eventually(lambda: other.done)
        await lane.release([ONE])
        if taken_again:
            assert await lane.acquire([ONE]) == {ONE: 2}
        session.locked = set()
        await asyncio.sleep(0.3)  # longer than it is set aside for
        assert [commit.shard for commit in session.flushed] == [TWO]
        assert not held_up.done


async def test_a_shard_that_is_not_held_is_not_written_for() -> None:
    session = Session()
    async with lane_over(session) as lane:
        await lane.acquire([ONE])
        stray, good = Source(TWO), Source(ONE)
        lane.submit(stray, lane.generation)
        lane.submit(good, lane.generation)
        await eventually(lambda: good.done)
        assert session.flushed == [good.commit]


async def test_a_write_of_an_ended_generation_is_refused() -> None:
    session = Session()
    async with lane_over(session) as lane:
        await lane.acquire([ONE])
        session.terminate()
        with pytest.raises(OwnershipLost):
            lane.submit(Source(ONE), 1)


async def test_a_write_of_an_ended_generation_is_refused_in_the_next_one() -> None:
    first, second = Session(), Session()
    async with lane_over(first, second) as lane:
        await lane.acquire([ONE])
        ended = lane.generation
        first.terminate()
        await eventually(lambda: lane.connected and lane.generation > ended)
        await lane.acquire([ONE])

        with pytest.raises(OwnershipLost):
            lane.submit(Source(ONE), ended)

        lane.submit(Source(ONE), lane.generation)
        await eventually(lambda: second.flushed)
        assert len(second.flushed) == 1


async def test_all_shards_are_swept_again_and_again_though_nobody_rings() -> None:
    session = Session()
    async with lane_over(session, poll=timedelta(milliseconds=10)) as lane:
        await lane.acquire([ONE, TWO])
        await eventually(lambda: session.swept)
        rung = len(session.swept)

        await eventually(lambda: len(session.swept) >= rung + 3)

        assert set(session.swept[rung:]) == {(ONE, TWO)}


class Restless(Source):
    """Asks to be written again as soon as it was."""

    def __init__(self, shard: ShardId, lane: Lane) -> None:
        super().__init__(shard)
        self.lane = lane

    def committed(self, flushed: Flushed) -> None:
        self.lane.submit(self, self.lane.generation)


async def test_a_shard_is_given_away_also_while_others_write_without_a_pause() -> None:
    class Steady(Session):
        async def flush(self, commits: Sequence[Commit]) -> Flushed:
            await asyncio.sleep(0)
            return await super().flush(commits)

    async with lane_over(session := Steady()) as lane:
        await lane.acquire([ONE, TWO])
        restless, last = Restless(TWO, lane), Source(ONE)
        lane.submit(restless, lane.generation)
        lane.submit(last, lane.generation)
        async with asyncio.timeout(5):
            await lane.release([ONE])
        assert last.done
        assert lane.shards.keys() == {TWO}
        session.terminate()


async def test_a_statement_has_a_bounded_size_and_a_commit_that_exceeds_it_goes_alone() -> None:
    session = Session()
    async with lane_over(session) as lane:
        await lane.acquire([ONE])
        sizes = [6, 6, 6, 1, 40, 1, 1]
        sources = [Source(ONE, bytes(mebibytes << 20)) for mebibytes in sizes]
        for source in sources:
            lane.submit(source, lane.generation)
        await eventually(lambda: all(source.done for source in sources))
        assert session.statements == [2, 1, 1, 1, 2]
        assert session.flushed == [source.commit for source in sources]


async def test_all_that_is_queued_is_written_before_a_shard_is_given_away() -> None:
    session = Session()
    async with lane_over(session) as lane:
        await lane.acquire([ONE])
        sources = [Source(ONE, bytes(12 << 20)) for _ in range(4)]
        for source in sources:
            lane.submit(source, lane.generation)
        await lane.release([ONE])
        assert all(source.done for source in sources)
