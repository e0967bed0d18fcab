"""A shard's owner at work against the next one: G1, and what is there once (G3, G4, G6)."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

import asyncpg
import pytest

from engine.core.errors import OwnershipLost, StorageUnavailable
from engine.core.ids import ShardId
from engine.core.journal import JournalRow
from engine.storage.protocol import Commit, Fence, LaneSession
from engine.storage.transaction import Transaction
from tests.eventually import eventually
from tests.gates import ServerGates, Side, every_order
from tests.storage.world import (
    ONE,
    Process,
    World,
    ids_of,
    message,
    next_id,
    save_one,
    start,
    step,
    success,
    sweep_of,
)

OWNER = "select epoch, runner_id from engine.shards where shard = 1"
LOCKS = """
    select count(*) from pg_locks l join engine.shard_groups g on l.classid = g.group_id::oid
    where l.locktype = 'advisory' and l.objid = 1 and l.granted
"""
SILENCE = """
    update engine.runner_heartbeats set beat_at = clock_timestamp() - interval '1 day'
    where runner_id = $1
"""
TTL = timedelta(minutes=1)


async def taken(lane: LaneSession) -> int:
    """The epoch, once the shard can be had."""

    async def acquired() -> Mapping[ShardId, int]:
        return await lane.acquire([ONE])

    return (await eventually(acquired, every=0.002))[ONE]


@pytest.fixture
async def owner(postgres: World) -> Process:
    return await postgres.process()


@pytest.fixture
async def next_owner(postgres: World) -> tuple[Process, LaneSession]:
    return await postgres.runner_with_lane()


async def test_a_flush_against_a_takeover(
    owner: Process, next_owner: tuple[Process, LaneSession], gates: ServerGates
) -> None:
    """G1, G4: what the next owner reads is all that there will ever be."""
    heir, successor = next_owner
    pen = f"outlast:{owner.runner}:lane%"
    await gates.hold("writes", "replies", of=pen)
    await gates.hold("commits", "replies", of=pen, commit=True)

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        id = (await save_one(owner, message())).envelope.request_id
        lane = await owner.lane()
        await taken(lane)
        (row,) = (await sweep_of(lane)).rows
        exit = Commit(shard=ONE, replies=[success(id)], settled=[row.seq])
        told: list[bool] = []
        read: list[tuple[bool, bool]] = []

        async def flush() -> None:
            try:
                await lane.flush([exit])
            except StorageUnavailable:
                told.append(False)
            else:
                told.append(True)

        async def look() -> tuple[bool, bool]:
            """Whether it has an exit, and whether it is still to be delivered."""
            replies = await heir.storage.replies([id])
            assert len(replies) <= 1
            return bool(replies), id in ids_of(await sweep_of(successor))

        async def take_over() -> None:
            await gates("tries")
            assert await successor.acquire([ONE]) == {}
            await gates("ends its session")
            await gates.end(pen)
            await gates("takes")
            assert list(await successor.acquire([ONE])) == [ONE]
            await gates("reads")
            read.append(await look())

        yield {"flush": flush, "takeover": take_over}

        assert read == [await look()]
        assert read[0] in {(True, False), (False, True)}
        assert told == [read[0][0]]
        await successor.flush([exit])
        assert await look() == (True, False)
        await successor.release([ONE])

    sides = {
        "flush": ("writes", "commits"),
        "takeover": ("tries", "ends its session", "takes", "reads"),
    }
    orders = await every_order(gates, sides, race)
    assert len(orders) == 3 + 2 + 1  # with both points, one, or none before its session ends


async def test_a_transaction_step_against_a_takeover(
    owner: Process, next_owner: tuple[Process, LaneSession], gates: ServerGates
) -> None:
    """G1, G6: its effect and its journal row are there together, and before the next owner reads or
    never."""
    _, successor = next_owner
    user = f"outlast:{owner.runner}:user"
    await gates.hold("journals", "journal", of=user)
    await gates.hold("commits", "journal", of=user, commit=True)
    await gates.sql.execute("create table effects (execution bigint)")

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        lane = await owner.lane()
        fence = Fence(shard=ONE, epoch=await taken(lane), runner=owner.runner)
        row = step(next_id(), 1)
        told: list[bool] = []
        took: list[bool] = []
        read: list[tuple[int, int]] = []

        async def work(tx: Transaction) -> JournalRow:
            await tx.execute("insert into effects values ($1)", row.execution)
            return row

        async def look() -> tuple[int, int]:
            effects = "select count(*) from effects where execution = $1"
            rows = await owner.storage.history(row.execution)
            return await gates.sql.fetchval(effects, row.execution), len(rows)

        async def transact() -> None:
            await gates("begins")
            try:
                await owner.storage.transact(fence, work)
            except OwnershipLost:
                told.append(False)
            else:
                told.append(True)

        async def take_over() -> None:
            await gates("ends its lane")
            await gates.end(f"outlast:{owner.runner}:lane%")
            await gates("takes")
            took.append(bool(await successor.acquire([ONE])))
            await gates("reads")
            read.append(await look())

        yield {"transaction": transact, "takeover": take_over}

        assert await look() == ((1, 1) if told[0] else (0, 0))
        assert told[0] or took[0]
        if took[0]:
            assert read == [await look()]
        else:
            await taken(successor)
        await successor.release([ONE])

    sides = {
        "transaction": ("begins", "journals", "commits"),
        "takeover": ("ends its lane", "takes", "reads"),
    }
    orders = await every_order(gates, sides, race)
    assert len(orders) == 20 - 4 + 2  # one that begins after it was taken is over at once


async def test_a_start_in_a_users_transaction_against_a_takeover(
    owner: Process, next_owner: tuple[Process, LaneSession], gates: ServerGates, dsn: str
) -> None:
    """G3: it is delivered once it has committed, to whoever owns its shard then."""
    _, successor = next_owner
    user = await asyncpg.connect(dsn)

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        request = start(f"o-{next_id()}")
        id = request.envelope.request_id
        lane = await owner.lane()
        await taken(lane)
        committed: list[bool] = []
        read: list[tuple[bool, bool]] = []

        async def in_transaction() -> None:
            await gates("begins")
            async with user.transaction():
                await owner.storage.save_on(user, request)
                await gates("commits")
            committed.append(True)

        async def take_over() -> None:
            await gates("ends its lane")
            await gates.end(f"outlast:{owner.runner}:lane%")
            await gates("takes")
            assert list(await successor.acquire([ONE])) == [ONE]
            await gates("reads")
            read.append((bool(committed), id in ids_of(await sweep_of(successor))))

        yield {"start": in_transaction, "takeover": take_over}

        assert read in ([(False, False)], [(True, True)])
        (row,) = (await sweep_of(successor)).rows
        assert row.envelope.request_id == id
        await successor.flush([Commit(shard=ONE, settled=[row.seq])])
        await successor.release([ONE])

    sides = {"start": ("begins", "commits"), "takeover": ("ends its lane", "takes", "reads")}
    assert len(await every_order(gates, sides, race)) == 10
    await user.close()


async def test_two_runners_that_acquire_one_shard(postgres: World, gates: ServerGates) -> None:
    """G1: one of them gets it, under an epoch of its own."""
    processes = [await postgres.process() for _ in range(2)]
    lanes = [await each.lane(nth) for nth, each in enumerate(processes)]
    for nth in range(2):
        await gates.hold(f"{nth} claims", "shards", of=f"%:lane-{nth}")
        await gates.hold(f"{nth} begins", "shards", of=f"%:lane-{nth}", commit=True)

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        before = await gates.sql.fetchval("select epoch from engine.shards where shard = 1")
        got: dict[int, int] = {}

        def acquire(nth: int) -> Side:
            async def run() -> None:
                await gates(f"{nth} locks")
                if epochs := await lanes[nth].acquire([ONE]):
                    got[nth] = epochs[ONE]

            return run

        yield {"0": acquire(0), "1": acquire(1)}

        ((winner, epoch),) = got.items()
        assert epoch == before + 1
        assert await gates.sql.fetchrow(OWNER) == (epoch, processes[winner].runner)
        assert await gates.sql.fetchval(LOCKS) == 1
        await lanes[winner].release([ONE])

    sides = {str(nth): (f"{nth} locks", f"{nth} claims", f"{nth} begins") for nth in range(2)}
    orders = await every_order(gates, sides, race)
    assert len(orders) == 2 * 3  # the other one comes after a point of the first
    for lane in lanes:
        await lane.close()


async def test_a_release_against_an_acquisition(
    owner: Process, next_owner: tuple[Process, LaneSession], gates: ServerGates
) -> None:
    """G1: it is the next owner's once its lock is free, and was not lost."""
    heir, successor = next_owner
    lane = await owner.lane(1)
    await gates.hold("disclaims", "shards", of="%:lane-1")
    await gates.hold("has disclaimed", "shards", of="%:lane-1", commit=True)
    await gates.hold("claims", "shards", of="%:lane-0")

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        before = await taken(lane)
        took: list[int] = []

        async def acquire() -> None:
            await gates("locks")
            took.extend((await successor.acquire([ONE])).values())

        yield {"release": partial(lane.release, [ONE]), "acquire": acquire}

        epoch = took[0] if took else await taken(successor)
        assert epoch == before + 1
        assert await gates.sql.fetchrow(OWNER) == (epoch, heir.runner)
        await successor.release([ONE])

    sides = {"release": ("disclaims", "has disclaimed"), "acquire": ("locks", "claims")}
    # It gets something to claim only after all of the release.
    assert len(await every_order(gates, sides, race)) == 3
    await lane.close()


async def test_a_runner_that_acquires_against_its_burial(
    postgres: World, next_owner: tuple[Process, LaneSession], gates: ServerGates
) -> None:
    """G1: whatever it was about to do, its peer has the shard, and it gets none any more."""
    peer, successor = next_owner
    await gates.hold("claims", "shards", of="%:lane-7")
    await gates.hold("begins", "shards", of="%:lane-7", commit=True)

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        process = await postgres.process()
        lane = await process.lane(7)
        await process.registry.beat(process.runner)
        await gates.sql.execute(SILENCE, process.runner)
        took: list[int] = []
        got: list[int] = []

        async def acquire() -> None:
            await gates("locks")
            try:
                got.extend((await lane.acquire([ONE])).values())
            except StorageUnavailable:
                return

        async def bury() -> None:
            await gates("buries")
            assert await peer.registry.bury(process.runner, by=peer.runner, ttl=TTL)
            await gates("ends its sessions")

            async def none_left() -> bool:
                return await peer.registry.end_sessions(process.runner) == 0

            await eventually(none_left, every=0.002)
            await gates("takes")
            took.extend((await successor.acquire([ONE])).values())

        yield {"acquire": acquire, "burial": bury}

        assert await gates.sql.fetchrow(OWNER) == (took[0], peer.runner)
        assert took[0] not in got
        await successor.release([ONE])
        again = await process.lane(7)
        assert await again.acquire([ONE]) == {}
        await again.close()

    sides = {
        "acquire": ("locks", "claims", "begins"),
        "burial": ("buries", "ends its sessions", "takes"),
    }
    orders = await every_order(gates, sides, race)
    assert any(order[:3] == ("locks", "claims", "begins") for order in orders)
    assert any(order[:3] == ("locks", "buries", "claims") for order in orders)
