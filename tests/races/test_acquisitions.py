"""Who wants a shard at once: G1."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial

from engine.core.errors import StorageUnavailable
from engine.storage.protocol import LaneSession
from tests.eventually import eventually
from tests.gates import ServerGates, Side, every_order
from tests.races.shards import taken
from tests.storage.world import ONE, Process, World

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
