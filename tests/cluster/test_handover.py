"""A shard that moves to another runner: who is served meanwhile, and what holds it up."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from engine import Client, Entity, Runner, Settings, Uninterruptible, rpc
from engine.cluster.shard import OwnedShard
from engine.core.clock import monotonic
from engine.node import postgres
from tests.eventually import eventually

LIMIT = timedelta(seconds=1)


class Stage:
    """What a test and its handlers have in common."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.go = asyncio.Event()
        self.client: Client | None = None


class Actor(Entity):
    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    @rpc(uninterruptible=Uninterruptible.SERVER)
    async def stays(self) -> None:
        await self._wait()

    @rpc(uninterruptible=Uninterruptible.SERVER)
    async def asks(self) -> None:
        await self._wait()
        assert self.stage.client is not None
        await self.stage.client.entity(Actor, "b").stays()
        self.stage.log.append(f"{self.entity_id} has its answer")

    @rpc
    async def takes_long(self) -> None:
        await self._wait()

    @rpc
    async def answers(self) -> str:
        return self.entity_id

    async def _wait(self) -> None:
        self.stage.log.append(f"{self.entity_id} begins")
        await self.stage.go.wait()
        self.stage.log.append(f"{self.entity_id} ends")


class Two:
    """Two runners over one shard: ``heavy`` takes it from ``light`` as soon as it runs."""

    def __init__(self, dsn: str) -> None:
        self.stage = Stage()
        settings = Settings(dsn=dsn, shards_per_group=1, handover_limit=LIMIT)
        self.light = self._runner(settings.model_copy(update={"weight": 0.001}))
        self.heavy = self._runner(settings.model_copy(update={"weight": 1000.0}))

    def _runner(self, settings: Settings) -> Runner:
        runner = Runner(settings, open_storage=postgres(settings))
        return runner.register(Actor(self.stage))

    def actor(self, id: str) -> Actor:
        return self.light.client.entity(Actor, id)

    @property
    def shard(self) -> OwnedShard:
        incarnation = self.light._incarnation
        assert incarnation is not None
        (shard,) = incarnation.delivery.shards.values()
        return shard

    async def answer_within(self, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            assert await self.actor("other").answers() == "other"


@asynccontextmanager
async def handing_over(dsn: str, handler: str) -> AsyncIterator[Two]:
    """The light runner has an actor that is in ``handler``, and is to give its shard away."""
    two = Two(dsn)
    async with asyncio.timeout(40), two.light:
        await eventually(lambda: two.light.epochs)
        await two.light.client.tell(getattr(two.actor("a"), handler))
        await eventually(lambda: two.stage.log == ["a begins"])
        try:
            yield two
        finally:
            two.stage.go.set()


async def test_while_a_handler_holds_its_shard_up_all_others_there_are_served(dsn: str) -> None:
    async with handing_over(dsn, "stays") as two, two.heavy:
        await eventually(lambda: two.shard.leaving is not None)
        until = monotonic() + 2 * LIMIT.total_seconds()
        while monotonic() < until:
            await two.answer_within(LIMIT.total_seconds())
        assert len(two.light.epochs) == 1
        two.stage.go.set()
        await eventually(lambda: len(two.heavy.epochs) == 1)
        assert two.stage.log == ["a begins", "a ends"]
        await two.answer_within(5)


async def test_what_takes_longer_than_the_limit_costs_the_others_no_silence(dsn: str) -> None:
    async with handing_over(dsn, "takes_long") as two, two.heavy:
        await eventually(lambda: two.shard.leaving is not None)
        silences: list[float] = []
        while not two.heavy.epochs:
            asked = monotonic()
            await two.answer_within(5)
            silences.append(monotonic() - asked)
        assert max(silences) < LIMIT.total_seconds()
        await eventually(lambda: two.stage.log == ["a begins", "a begins"])
        two.stage.go.set()


async def test_one_that_is_waited_for_may_wait_for_another_of_its_shard(dsn: str) -> None:
    async with handing_over(dsn, "asks") as two, two.heavy:
        await eventually(lambda: two.shard.leaving is not None)
        two.stage.client = two.light.client
        two.stage.go.set()
        await eventually(lambda: len(two.heavy.epochs) == 1)
        assert two.stage.log == ["a begins", "a ends", "b begins", "b ends", "a has its answer"]
        await two.answer_within(5)


async def test_what_would_hold_the_shard_up_again_is_left_to_the_next_owner(dsn: str) -> None:
    async with handing_over(dsn, "stays") as two, two.heavy:
        await eventually(lambda: two.shard.leaving is not None)
        await two.light.client.tell(two.actor("b").stays)
        await two.answer_within(5)
        assert two.stage.log == ["a begins"]
        two.stage.go.set()
        await eventually(lambda: "b ends" in two.stage.log)
        assert two.stage.log == ["a begins", "a ends", "b begins", "b ends"]
        assert len(two.heavy.epochs) == 1


async def test_a_shard_that_is_wanted_again_is_kept(dsn: str) -> None:
    async with handing_over(dsn, "stays") as two:
        before = two.light.epochs
        async with two.heavy:
            await eventually(lambda: two.shard.leaving is not None)
            await two.light.client.tell(two.actor("b").stays)
        await eventually(lambda: two.shard.leaving is None)
        await eventually(lambda: two.stage.log == ["a begins", "b begins"])
        await two.answer_within(5)
        two.stage.go.set()
        await eventually(lambda: {"a ends", "b ends"} <= {*two.stage.log})
        assert two.light.epochs == before
