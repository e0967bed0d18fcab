"""An execution whose shard is given away starts nothing any more."""

import asyncio
from datetime import timedelta

from engine import Deferred, RetryPolicy, Workflow, activity
from engine.testing import TestCluster, VirtualClock

MINUTE = timedelta(minutes=1)


class Tries(Workflow[int, int]):
    go = Deferred(int)

    def __init__(self) -> None:
        self.attempts: list[int] = []

    async def execute(self, request: int) -> int:
        trying = asyncio.create_task(self.work())
        await self.go.wait()
        return await trying

    @activity(retry=RetryPolicy(attempts=5, initial=MINUTE, jitter=0))
    async def work(self) -> int:
        self.attempts.append(self.attempt)
        if self.attempt == 1:
            raise ValueError("once more")
        return 7


async def test_a_retry_that_falls_due_meanwhile_is_left_to_the_next_owner() -> None:
    tries = Tries()
    async with TestCluster(tries, shards_per_group=1, suspend_after=MINUTE * 5) as cluster:
        assert isinstance(cluster.clock, VirtualClock)
        await cluster.client.start(Tries, 1)
        await cluster.settle()
        incarnation = cluster.runner._incarnation
        assert incarnation is not None
        assert incarnation._executions is not None
        (resident,) = incarnation._executions._residents.values()
        cluster.clock._now += MINUTE * 2  # due, but its alarm has not fired
        resident.suspend()
        resident._ledger.held.append(10**9)  # a row that comes while it is being suspended
        resident.shard.accepting = False
        await resident.drain(MINUTE)
        await cluster.settle()
        assert tries.attempts == [1]
