"""One thing done to all executions that match: dry, in parts, and once more."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from engine import (
    ConfigurationError,
    Deferred,
    NotFound,
    RetryPolicy,
    Status,
    Workflow,
    activity,
    repair,
)
from engine.bulk import pause_after
from tests.workflow.conftest import World


class Errand(Workflow[str, str]):
    """Waits, or fails until it is mended."""

    go = Deferred(str)
    mended = False
    cleaned: Counter[str]

    def __init__(self) -> None:
        self.cleaned = Counter()

    async def execute(self, request: str) -> str:
        if request == "fails":
            return await self.step()
        try:
            return await self.go.wait()
        finally:
            if not self.suspending:
                await self.clean(self.execution_id)

    @activity(retry=RetryPolicy(attempts=1))
    async def step(self) -> str:
        if not Errand.mended:
            raise ConnectionError("away")
        return "mended"

    @activity
    async def clean(self, id: str) -> None:
        self.cleaned[id] += 1


async def errands(world: World, cluster: Any, request: str, *keys: str) -> list[Any]:
    made = [
        await cluster.client.start(Errand, request, key=key, attributes={"shop": key[0]})
        for key in keys
    ]
    wanted = Status.FAILED if request == "fails" else Status.SUSPENDED
    for each in made:

        async def settled(each: Any = each) -> bool:
            return (await each.describe()).status is wanted

        await world.until(cluster, settled)
    return made


async def told(cluster: Any, action: Any, **options: Any) -> list[tuple[str, bool, str]]:
    results = cluster.client.bulk(action, **options)
    return [(each.execution.id, each.done, each.problem) async for each in results]


async def test_only_what_matches_is_ended_and_a_dry_run_ends_nothing(world: World) -> None:
    async with world.cluster(Errand()) as cluster, asyncio.timeout(40):
        a1, a2, b1 = await errands(world, cluster, "waits", "a1", "a2", "b1")
        shop: dict[str, Any] = {"workflow": Errand, "attributes": {"shop": "a"}}
        dry = await told(cluster, "terminate", **shop, dry_run=True)
        assert not any([(await each.describe()).status.finished for each in (a1, a2, b1)])
        first = await told(cluster, "terminate", **shop, limit=1, reason="closed")
        second = await told(cluster, "terminate", **shop, rate=1000.0, reason="closed")
        for each in (a1, a2):
            with pytest.raises(Exception, match="closed"):
                await world.result(cluster, each)
        again = await told(cluster, "terminate", **shop)
        assert (await b1.describe()).status is Status.SUSPENDED
    assert dry == [("a2", False, ""), ("a1", False, "")]
    assert first == [("a2", True, "")]
    assert ("a1", True, "") in second
    assert again == []


async def test_an_interrupt_that_is_repeated_does_not_cut_the_cleanup_short(world: World) -> None:
    errand = Errand()
    async with world.cluster(errand) as cluster, asyncio.timeout(40):
        made = await errands(world, cluster, "waits", "a", "b", "c")
        once = await told(cluster, "interrupt", workflow="Errand", reason="closed")
        twice = await told(cluster, "interrupt", workflow="Errand", reason="closed")
        for each in made:
            with pytest.raises(Exception, match="closed"):
                await world.result(cluster, each)
    assert [done for _, done, _ in once] == [True] * 3
    assert not any(done for _, done, _ in twice)
    assert errand.cleaned == {"a": 1, "b": 1, "c": 1}


async def test_failed_ones_are_retried_by_their_error(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world.cluster(Errand()) as cluster, asyncio.timeout(40):
        made = await errands(world, cluster, "fails", "a", "b")
        monkeypatch.setattr(Errand, "mended", True)
        none = await told(cluster, "retry", error="KeyError")
        both = await told(cluster, "retry", error="ConnectionError")
        assert [await world.result(cluster, each) for each in made] == ["mended"] * 2
        again = await told(cluster, "retry")
    assert (none, again) == ([], [])
    assert both == [("b", True, ""), ("a", True, "")]


async def test_one_that_is_pruned_as_it_is_retried_is_not_found(world: World) -> None:
    async with world.cluster(Errand()) as cluster, asyncio.timeout(40):
        await errands(world, cluster, "fails", "a")
        node = cluster.client._node
        found = await node.storage.find("Errand", "a")
        pruned = cluster.client.prune(Errand, older_than=timedelta(0))
        assert [each.done async for each in pruned] == [True]
        with pytest.raises(NotFound, match="pruned"):
            await repair.retry(node, found)


async def test_matching_ones_are_paused_and_resumed(world: World) -> None:
    async with world.cluster(Errand()) as cluster, asyncio.timeout(40):
        made = await errands(world, cluster, "waits", "a", "b")
        await told(cluster, "pause", attributes={"shop": "a"}, reason="stocktaking")

        async def paused() -> bool:
            return (await made[0].describe()).status is Status.PAUSED

        await world.until(cluster, paused)
        await made[0].resolve(Errand.go, "went")
        resumed = await told(cluster, "resume")
        assert await world.result(cluster, made[0]) == "went"
        assert (await made[1].describe()).status is Status.SUSPENDED
    assert resumed == [("a", True, "")]


async def test_those_that_ended_long_ago_are_deleted_on_demand(world: World) -> None:
    async with world.cluster(Errand()) as cluster, asyncio.timeout(40):
        prune, no_time = cluster.client.prune, timedelta(0)
        await errands(world, cluster, "fails", "a1", "a2", "b1")
        await errands(world, cluster, "waits", "c1")
        young = [each async for each in prune(Errand, older_than=timedelta(hours=1))]
        shop = {"shop": "a"}
        dry = [r async for r in prune(older_than=no_time, attributes=shop, dry_run=True)]
        one = [each async for each in prune("Errand", older_than=no_time, attributes=shop, limit=1)]
        every = [each async for each in prune(older_than=no_time, version=1)]
        left = [each.id async for each in cluster.client.executions()]
        with pytest.raises(ConfigurationError, match="deletes nothing that goes on"):
            _ = [each async for each in prune(older_than=no_time, status=Status.RUNNING)]
        with pytest.raises(ConfigurationError, match="rate must be more than 0"):
            _ = [each async for each in prune(older_than=no_time, rate=0)]
        with pytest.raises(ConfigurationError, match="older_than= takes a timedelta"):
            _ = [each async for each in prune(older_than=30)]  # type: ignore[arg-type]
        await cluster.client.start(Errand, "waits", key="a1", attributes={})  # another request
    assert young == []
    assert [(each.execution.id, each.done) for each in dry] == [("a2", False), ("a1", False)]
    assert [(each.execution.id, each.done) for each in one] == [("a2", True)]
    assert [(each.execution.id, each.done) for each in every] == [("b1", True), ("a1", True)]
    assert left == ["c1"]


async def test_what_can_have_no_effect_is_refused(world: World) -> None:
    async with world.cluster(Errand()) as cluster, asyncio.timeout(40):
        with pytest.raises(ConfigurationError, match="terminate has no effect on what is failed"):
            await told(cluster, "terminate", status=Status.FAILED)
        with pytest.raises(ConfigurationError, match="rate must be more than 0"):
            await told(cluster, "pause", rate=0)


def test_a_rate_is_kept_by_waiting_for_what_is_ahead_of_it() -> None:
    assert pause_after(100, rate=50, taken=0.5) == 1.5
    assert pause_after(100, rate=50, taken=3.0) == 0.0
