"""What is pruned while somebody comes to it: G2, G3."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest

from engine import Client, Execution, Runner, Settings, Status, Succeeded, Workflow
from engine.cluster import replies
from engine.core.clock import Clock
from engine.core.ids import Snowflake
from engine.node import Node
from engine.node import postgres as opened
from engine.storage.memory import MemoryStorage
from engine.storage.protocol import Commit
from engine.storage.retention import RequestTerm
from engine.testing import TestCluster
from tests.gates import Gates, Held, ServerGates, Side, every_order
from tests.races.starts import FAIL, RUN, Double, Told, starting, stored, whole
from tests.storage.world import ONE, World, defect, message, next_id, save_one, sweep_of

FAR = datetime(2080, 1, 1, tzinfo=UTC)


async def test_a_restart_against_a_prune(dsn: str, postgres: World, gates: ServerGates) -> None:
    """G3: what was acknowledged goes on, as the next run of what was there, or anew."""
    settings = Settings(dsn=dsn)
    pruner = await postgres.process(register=False)
    pool = f"outlast:{pruner.storage.identity}:%"
    await gates.hold("deletes", "dedup", of=pool)
    await gates.hold("has deleted", "dedup", of=pool, commit=True)

    def open_storage(identity: UUID | None, clock: Clock) -> Any:
        return Held(
            opened(settings)(identity, clock), gates, {"load": "loads", "reopen": "reopens"}
        )

    node = Node(settings, open_storage=open_storage)
    client = Client(settings, node=node)

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        key, told = f"o-{next_id()}", Told()
        failed = (await client.start(Double, 1, key=key)).request_id
        await gates.sql.execute(FAIL, failed)

        async def prune() -> None:
            await gates("prunes")
            await pruner.storage.prune([failed], before=FAR)

        yield {
            "restart": starting(gates, told, "one", client, key, 1, "restart-failed"),
            "prune": prune,
        }

        found = told["one"]
        assert isinstance(found, Execution)
        restarted = found.request_id == failed
        run, status = (2, Status.RUNNING) if restarted else (1, Status.SCHEDULED)
        assert await gates.sql.fetchrow(RUN, found.request_id) == (run, status.value)
        there = await stored(gates, failed, found.request_id, key=key)
        assert there == whole(found.request_id) | ({"inbox": []} if restarted else {})

    sides = {
        "restart": ("one asks", "loads", "reopens"),
        "prune": ("prunes", "deletes", "has deleted"),
    }
    async with node:
        orders = await every_order(gates, sides, race)
    assert len(orders) == 20


async def test_a_start_against_a_prune(
    clients: list[Client], postgres: World, gates: ServerGates
) -> None:
    """G2: it finds what is there, or is stored itself, and nothing of it goes with the other."""
    pruner = await postgres.process(register=False)
    pool = f"outlast:{pruner.storage.identity}:%"
    await gates.hold("deletes", "dedup", of=pool)
    await gates.hold("has deleted", "dedup", of=pool, commit=True)

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        key, told, deleted = f"o-{next_id()}", Told(), list[Snowflake]()
        failed = (await clients[0].start(Double, 1, key=key)).request_id
        await gates.sql.execute(FAIL, failed)

        async def prune() -> None:
            await gates("prunes")
            deleted.extend(await pruner.storage.prune([failed], before=FAR))

        yield {"start": starting(gates, told, "one", clients[0], key, 1), "prune": prune}

        found = told["one"]
        assert isinstance(found, Execution)
        assert deleted == [failed]
        new = [] if found.request_id == failed else [found.request_id]
        assert await stored(gates, failed, found.request_id, key=key) == whole(*new)

    sides = {
        "start": ("one asks", "one writes", "one commits"),
        "prune": ("prunes", "deletes", "has deleted"),
    }
    orders = await every_order(gates, sides, race)
    # Only what asks after the prune has committed has something to commit itself.
    assert len(orders) == 10
    assert sum("one commits" in order for order in orders) == 1


async def test_a_dead_letter_that_is_sent_again_against_a_prune(
    postgres: World, gates: ServerGates
) -> None:
    """G3: it is delivered again, or it was gone before; nothing of it is left half there."""
    owner, lane = await postgres.runner_with_lane()
    other = await postgres.process(register=False)
    assert await lane.acquire([ONE])
    for side, process in (("revival", other), ("prune", owner)):
        of = f"outlast:{process.runner}:%"
        await gates.hold(f"{side} writes", "replies", of=of)
        await gates.hold(f"{side} commits", "replies", of=of, commit=True)
    term = RequestTerm(group="default", until=FAR, failed_until=FAR)
    revived: list[bool] = []

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        request = await save_one(owner, message())
        id = request.envelope.request_id
        (row,) = (await sweep_of(lane)).rows
        await lane.flush([Commit(shard=ONE, replies=[defect(request)], settled=[row.seq])])

        async def revive() -> None:
            await gates("revival asks")
            await other.storage.revive([id])

        async def prune() -> None:
            await gates("prune asks")
            await owner.storage.prune_requests(term, after=Snowflake(id - 1), limit=10)

        yield {"revival": revive, "prune": prune}

        assert await owner.storage.replies([id]) == []
        swept = (await sweep_of(lane)).rows
        there = await owner.storage.stored([id])
        assert [each.envelope.request_id for each in swept] == [*there]
        await lane.flush([Commit(shard=ONE, settled=[each.seq for each in swept])])
        await owner.storage.prune_requests(term, after=Snowflake(id - 1), limit=10)
        revived.append(bool(there))

    points = "asks", "writes", "commits"
    sides = {side: [f"{side} {point}" for point in points] for side in ("revival", "prune")}
    await every_order(gates, sides, race)
    assert set(revived) == {True, False}
    await lane.close()


class Child(Workflow[int, int]):
    def __init__(self) -> None:
        self.runs: list[int] = []

    async def execute(self, request: int) -> int:
        self.runs.append(request)
        return request * 2


class Parent(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        return await self.run_child(Child, request, key="shared")


@pytest.mark.parametrize("place", range(3))
async def test_a_child_that_is_pruned_is_run_again(
    place: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its parent has its result or, since its key is free again, that of another run of it."""
    monkeypatch.setattr(replies, "_LOOK_AFTER", 0.0)
    gates, child = Gates(), Child()
    cluster = TestCluster(Parent(), child)
    database = cluster.database
    assert database is not None

    def open_storage(identity: UUID | None, clock: Clock) -> Any:
        storage = MemoryStorage(database, identity=identity, shards_per_group=8)
        return Held(storage, gates, {"follow": "follows", "watch": "waits"})

    cluster.runner = Runner(cluster.settings, clock=cluster.clock, open_storage=open_storage)
    async with cluster:
        before = await cluster.client.start(Child, 1, key="shared")
        await cluster.settle()
        await gates.close(["follows", "waits"])
        parent = await cluster.client.start(Parent, 1)
        for nth, point in enumerate(("follows", "waits", None)):
            await cluster.settle()
            if nth == place:
                storage = cluster.client._node.storage
                assert await storage.prune([before.request_id], before=FAR)
            if point is not None:
                assert await gates.held() == {point}
                await gates.open(point)
        await cluster.settle()
        assert await parent.poll() == Succeeded(2)
        assert child.runs == [1] * (1 if place == 2 else 2)
