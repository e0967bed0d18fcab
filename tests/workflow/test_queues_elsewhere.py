"""A runner without a queue owns its shard for a while: what only the queue can make of a message
waits for one that has it."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from engine import Entity, Item, Queue, RequestFailed, rpc
from engine.testing import TestCluster
from tests.eventually import eventually

BRIEF = timedelta(milliseconds=200)


class Jobs(Queue[str, str]):
    concurrency = 1

    def __init__(self, *, stuck: bool = False) -> None:
        self.began: list[str] = []
        self.stuck = stuck

    async def process(self, item: str) -> str:
        self.began.append(item)
        if self.stuck:
            await asyncio.Event().wait()
        return item


class Served(Entity):
    @rpc
    async def say(self) -> str:
        return ""


class Unserved(Served):
    """Nobody serves it."""


def cluster_of(prototype: Any, dsn: str) -> TestCluster:
    return TestCluster(
        prototype, dsn=dsn, shards_per_group=1, grace_period=BRIEF, unregistered_timeout=BRIEF
    )


async def submitted(cluster: TestCluster) -> list[Item[str]]:
    return [await cluster.client.submit(Jobs, each, id=each) for each in "abc"]


async def test_ends_and_cancellations_wait_for_a_runner_with_the_queue(dsn: str) -> None:
    first, second = Jobs(stuck=True), Jobs()
    async with cluster_of(first, dsn) as cluster:
        await submitted(cluster)
        await eventually(lambda: first.began == ["a"])

    async with cluster_of(Served(), dsn) as cluster:
        running, waiting, _ = await submitted(cluster)
        with pytest.raises(RequestFailed, match="NotRegistered"):
            await running.join()  # whose end is in the inbox of its queue now
        assert await waiting.cancel()
        with pytest.raises(RequestFailed, match="NotRegistered"):
            await cluster.client.entity(Unserved, "later").say()

    async with cluster_of(second, dsn) as cluster:
        _, waiting, last = await submitted(cluster)
        assert await last.join() == "c"
        with pytest.raises(RequestFailed, match="was ended"):
            await waiting.join()
    assert second.began == ["c"]
