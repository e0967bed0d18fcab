"""A shard that changes hands."""

from collections.abc import Mapping

from engine.core.ids import ShardId
from engine.storage.protocol import LaneSession
from tests.eventually import eventually
from tests.storage.world import ONE


async def taken(lane: LaneSession) -> int:
    """The epoch, once the shard can be had."""

    async def acquired() -> Mapping[ShardId, int]:
        return await lane.acquire([ONE])

    return (await eventually(acquired, every=0.002))[ONE]
