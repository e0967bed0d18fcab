"""How a runner stops: nothing new is taken, what runs may end, and the shards go last."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import (
    Client,
    Entity,
    EntityId,
    EntityType,
    Runner,
    Settings,
    Sharding,
    ShuttingDown,
    Singleton,
    SingletonContext,
    StorageUnavailable,
    Success,
    Uninterruptible,
    rpc,
)
from engine.node import postgres
from engine.testing import TestCluster
from tests.eventually import eventually

SHORT = timedelta(milliseconds=50)
LONG = timedelta(minutes=5)


class Stage:
    """What a test and its handlers have in common."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.go = asyncio.Event()
        self.sharding: Sharding
        self.client: Client


class Actor(Entity):
    """Waits for ``go``; its cleanup is what a test is about."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @rpc
    async def wait(self) -> bool:
        stage, shard = self.stage, self._shard()
        stage.log.append(f"{self.entity_id} begins")
        try:
            await stage.go.wait()
        finally:
            stage.log.append(f"{self.entity_id} ends, shard {stage.sharding.has_shard_id(shard)}")
        return True

    @rpc
    async def sends(self) -> bytes:
        """Sends while its runner stops, itself and by a task of its own."""
        self.stage.log.append("sends begins")
        await eventually(self.stage.sharding.is_shutdown)
        note = self.stage.sharding.make_client(EntityType("Absent"))
        async with asyncio.TaskGroup() as group:
            group.create_task(note.notify("a", "ping"))
        await note.send("b", "ping")
        return b"sent"

    @rpc
    async def stuck(self) -> None:
        """Its cleanup asks what nobody will answer, and again when it is told to stop that."""
        self.stage.log.append(f"{self.entity_id} begins")
        absent = self.stage.sharding.make_client(EntityType("Absent"))
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(3):
                with suppress(asyncio.CancelledError):
                    await (await absent.send("a", "ping"))
            self.stage.log.append(f"{self.entity_id} ends")

    @rpc
    async def stream(self) -> AsyncIterator[int]:
        self.stage.log.append(f"{self.entity_id} begins")
        try:
            while True:
                await asyncio.sleep(0.01)
                yield 1
        finally:
            await self.stage.client.entity(Absent, "a").ping()

    @rpc(uninterruptible=Uninterruptible.SERVER)
    async def stays(self) -> bool:
        return await self.wait()

    @rpc
    async def stops(self) -> None:
        """Waits for its own runner to have stopped, which waits for it."""
        self.stage.log.append(f"{self.entity_id} begins")
        await self.stage.sharding.shutdown()

    def _shard(self) -> Any:
        return self.stage.sharding.get_shard_id(EntityType("Actor"), EntityId(self.entity_id))


class Absent(Entity):
    """Registered nowhere."""

    @rpc
    async def ping(self) -> None: ...


class Watchman(Singleton):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def run(self, context: SingletonContext) -> None:
        self.stage.log.append("watchman begins")
        try:
            await asyncio.Event().wait()
        finally:
            for _ in range(2):
                with suppress(asyncio.CancelledError):
                    await self.stage.client.entity(Absent, "a").ping()
            self.stage.log.append("watchman ends")


@pytest.fixture
def stage() -> Stage:
    return Stage()


def acting(stage: Stage, where: dict[str, Any], grace: timedelta) -> TestCluster:
    cluster = TestCluster(Actor(stage), grace_period=grace, **where)
    stage.sharding, stage.client = cluster.runner.sharding, cluster.client
    return cluster


async def test_nothing_new_is_taken_while_what_is_running_ends(
    stage: Stage, where: dict[str, Any]
) -> None:
    async with asyncio.timeout(30), acting(stage, where, LONG) as cluster:
        sharding = cluster.runner.sharding
        actor = sharding.make_client(EntityType("Actor"))
        assert not sharding.is_shutdown()
        waiting = await actor.send("a", "wait")
        await eventually(lambda: stage.log == ["a begins"])
        async with asyncio.TaskGroup() as group:
            stopping = group.create_task(sharding.shutdown())
            await eventually(sharding.is_shutdown)
            with pytest.raises(ShuttingDown, match="takes nothing new"):
                await actor.send("a", "wait")
            with pytest.raises(ShuttingDown, match="takes nothing new"):
                await actor.notify("a", "wait")
            await cluster.client.tell(cluster.client.entity(Actor, "a").wait)
            assert not stopping.done()
            stage.go.set()
        assert stage.log == ["a begins", "a ends, shard True"]
        assert await waiting == Success(b"true")
        assert sharding.is_shutdown()
        assert cluster.runner.epochs == {}
        assert sharding.active_entity_count() == 0
        await sharding.shutdown()


async def test_what_a_runner_has_in_hand_may_send_while_it_stops(
    stage: Stage, where: dict[str, Any]
) -> None:
    async with asyncio.timeout(30), acting(stage, where, LONG) as cluster:
        sharding = cluster.runner.sharding
        sent = await sharding.make_client(EntityType("Actor")).send("a", "sends")
        await eventually(lambda: stage.log == ["sends begins"])
        await sharding.shutdown()
        assert await sent == Success(b'"sent"')


async def test_what_remains_after_the_grace_period_is_interrupted_and_handled_again_elsewhere(
    stage: Stage, where: dict[str, Any]
) -> None:
    async with asyncio.timeout(30), acting(stage, where, SHORT) as cluster:
        actor = cluster.runner.sharding.make_client(EntityType("Actor"))
        waiting = await actor.send("a", "wait")
        await eventually(lambda: stage.log == ["a begins"])
        await cluster.runner.sharding.shutdown()
        assert stage.log == ["a begins", "a ends, shard True"]
        assert await cluster.runner.sharding.replies_for(waiting.request_id) == []
        if not where:
            where = {"database": cluster.database}
        stage.go.set()
        async with acting(stage, where, SHORT) as next_owner:
            answer = await next_owner.runner.sharding.await_reply(waiting.request_id)
            assert await answer == Success(b"true")


@pytest.mark.parametrize("handler", ["stuck", "stream", "stops"])
async def test_cleanup_that_waits_for_what_never_comes_holds_nothing_up(
    stage: Stage, where: dict[str, Any], handler: str
) -> None:
    async with asyncio.timeout(30), acting(stage, where, SHORT) as cluster:
        actor = cluster.runner.sharding.make_client(EntityType("Actor"))
        ids = ["a", "b"] if handler != "stops" else ["a"]
        for id in ids:
            await actor.notify(id, handler)
        await eventually(lambda: {f"{id} begins" for id in ids} <= {*stage.log})
        async with asyncio.timeout(15):
            await cluster.runner.sharding.shutdown()
        assert cluster.runner.epochs == {}


async def test_cleanup_of_a_singleton_that_waits_for_what_never_comes_ends_before_its_shard_goes(
    stage: Stage,
) -> None:
    async with TestCluster(Watchman(stage), grace_period=SHORT) as cluster:
        stage.client = cluster.client
        await eventually(lambda: stage.log == ["watchman begins"])
        async with asyncio.timeout(15):
            await cluster.runner.sharding.shutdown()
        assert stage.log == ["watchman begins", "watchman ends"]


async def test_a_handler_that_the_server_may_not_interrupt_has_the_grace_period_and_no_more(
    stage: Stage,
) -> None:
    async with asyncio.timeout(30), acting(stage, {}, SHORT) as cluster:
        await cluster.runner.sharding.make_client(EntityType("Actor")).notify("a", "stays")
        await eventually(lambda: stage.log == ["a begins"])
        await cluster.runner.sharding.shutdown()
        assert stage.log == ["a begins", "a ends, shard True"]


async def test_a_hand_over_that_waits_for_such_a_handler_does_not_hold_up_a_stop(
    stage: Stage, dsn: str
) -> None:
    settings = Settings(
        dsn=dsn, shards_per_group=1, grace_period=SHORT, handover_limit=SHORT, weight=0.001
    )
    first = Runner(settings, open_storage=postgres(settings)).register(Actor(stage))
    heavy = settings.model_copy(update={"weight": 1000.0})
    second = Runner(heavy, open_storage=postgres(heavy)).register(Actor(stage))
    stage.sharding = first.sharding
    async with asyncio.timeout(40), first:
        await eventually(lambda: len(first.epochs) == 1)
        await first.sharding.make_client(EntityType("Actor")).notify("a", "stays")
        await eventually(lambda: stage.log == ["a begins"])
        async with second:
            shards = first._incarnation and first._incarnation.delivery.shards
            assert shards
            (shard,) = shards.values()
            await eventually(lambda: shard.leaving is not None)
            async with asyncio.timeout(15):
                await first.sharding.shutdown()
            await eventually(lambda: len(second.epochs) == 1)


async def test_leaving_the_runner_and_shutting_down_are_one(stage: Stage) -> None:
    async with acting(stage, {}, LONG) as cluster:
        waiting = await cluster.runner.sharding.make_client(EntityType("Actor")).send("a", "wait")
        await eventually(lambda: stage.log == ["a begins"])
        async with asyncio.TaskGroup() as group:
            left = group.create_task(cluster.runner.__aexit__(None, None, None))
            await eventually(cluster.runner.sharding.is_shutdown)
            both = group.create_task(cluster.runner.sharding.shutdown())
            await asyncio.sleep(0)
            assert not left.done()
            assert not both.done()
            stage.go.set()
        assert stage.log == ["a begins", "a ends, shard True"]
        with pytest.raises(StorageUnavailable, match="closed"):
            await waiting


async def test_run_returns_when_somebody_shuts_the_runner_down(stage: Stage) -> None:
    cluster = TestCluster(Actor(stage))
    runner = cluster.runner.register(*cluster.prototypes)
    async with asyncio.timeout(20), asyncio.TaskGroup() as group:
        running = group.create_task(runner.run())
        await eventually(lambda: len(runner.epochs) == cluster.settings.shards_per_group)
        await runner.sharding.shutdown()
        await running


async def test_whoever_stops_waiting_for_a_shutdown_stops_nothing(stage: Stage) -> None:
    async with acting(stage, {}, LONG) as cluster:
        sharding = cluster.runner.sharding
        await sharding.make_client(EntityType("Actor")).notify("a", "wait")
        await eventually(lambda: stage.log == ["a begins"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await sharding.shutdown()
        assert sharding.is_shutdown()
        stage.go.set()
        await sharding.shutdown()
        assert stage.log == ["a begins", "a ends, shard True"]


async def test_a_runner_that_lost_its_lanes_is_not_shut_down(
    stage: Stage, where: dict[str, Any]
) -> None:
    async with acting(stage, where, SHORT) as cluster:
        cluster.runner.crash()
        assert not cluster.runner.sharding.is_shutdown()
        await cluster._owning()
        assert not cluster.runner.sharding.is_shutdown()


def test_a_runner_that_was_not_entered_takes_no_work(stage: Stage) -> None:
    assert acting(stage, {}, SHORT).runner.sharding.is_shutdown()


async def test_the_peer_has_all_shards_once_a_runner_has_shut_down(stage: Stage, dsn: str) -> None:
    settings = Settings(dsn=dsn, shards_per_group=12)
    first, second = (
        Runner(settings, open_storage=postgres(settings)).register(Actor(stage)) for _ in range(2)
    )
    async with asyncio.timeout(30), first, second:
        await eventually(lambda: len(first.epochs) == len(second.epochs) == 6)
        await first.sharding.shutdown()
        assert first.epochs == {}
        await eventually(lambda: len(second.epochs) == 12)
        stage.sharding = second.sharding
        stage.go.set()
        assert await first.client.entity(Actor, "a").wait()


async def test_a_second_signal_ends_the_process_whatever_runs_in_it(dsn: str) -> None:
    root = Path(__file__).parents[2]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.cluster.stubborn_process", dsn),
        cwd=root,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(root)},
    )
    try:
        async with asyncio.timeout(40):
            assert process.stdout is not None
            assert await process.stdout.readline() == b"begun\n"
            process.send_signal(signal.SIGTERM)
            await asyncio.sleep(0.5)
            assert process.returncode is None
            process.send_signal(signal.SIGTERM)
            _, told = await process.communicate()
            assert process.returncode == 128 + signal.SIGTERM
            assert b"stubborn_process.py" in told
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
