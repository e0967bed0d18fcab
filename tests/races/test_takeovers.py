"""A shard's owner at work against the next one: G1, and what is there once (G3, G4, G6)."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import asyncpg

from engine.core.errors import OwnershipLost, StorageUnavailable
from engine.core.journal import JournalRow
from engine.storage.protocol import Commit, Fence, LaneSession
from engine.storage.transaction import Transaction
from tests.gates import ServerGates, Side, every_order
from tests.races.shards import taken
from tests.storage.world import (
    ONE,
    Process,
    ids_of,
    message,
    next_id,
    save_one,
    start,
    step,
    success,
    sweep_of,
)


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
