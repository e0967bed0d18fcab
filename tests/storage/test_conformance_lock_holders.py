"""Who has the lock of a shard and is no live runner, on both storages."""

from datetime import timedelta

from tests.eventually import eventually
from tests.storage.world import ONE, TWO, World


async def test_locks_are_nobodys_business_until_their_runner_is_declared_dead(
    world: World,
) -> None:
    dead, lane = await world.runner_with_lane()
    peer = await world.process()
    await lane.acquire([ONE, TWO])
    assert await peer.storage.lock_holders() == []

    assert await peer.registry.bury(dead.runner, by=peer.runner, ttl=timedelta(0))
    (holder,) = await peer.storage.lock_holders()
    assert holder.shards == (ONE, TWO)
    assert str(dead.runner) in str(holder)
    assert holder.named == f"{ONE}, {TWO}"

    await peer.registry.end_sessions(dead.runner)

    async def gone() -> bool:
        return await peer.storage.lock_holders() == []

    await eventually(gone)
