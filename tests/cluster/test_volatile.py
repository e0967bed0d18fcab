import asyncio
from engine import Entity, rpc
from engine.testing import TestCluster
class Board(Entity):
    @rpc(persisted=False)
    async def add(self, n: int) -> int:
        return n + 1
async def test_local():
    async with TestCluster(Board()) as cluster:
        b = cluster.client.entity(Board, "a")
        assert await b.add(1) == 2
