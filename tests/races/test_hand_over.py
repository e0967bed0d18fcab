"""A shard that is given away, and is wanted again meanwhile: G1, G3."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from engine import Entity, Runner, Settings, Uninterruptible, rpc
from engine.core.clock import Clock
from engine.core.ids import RunnerId
from engine.node import OpenStorage
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import LaneSession
from tests.eventually import eventually
from tests.gates import Gates, Held, Side, every_order


class Actor(Entity):
    def __init__(self, gates: Gates, log: list[str]) -> None:
        self.gates = gates
        self.log = log

    @rpc(uninterruptible=Uninterruptible.SERVER)
    async def plays(self) -> None:
        self.log.append(f"{self.entity_id} begins")
        await self.gates(f"{self.entity_id} ends")
        self.log.append(f"{self.entity_id} ends")


class Storage(PostgresStorage):
    """Its lanes are held before they give shards back, and before the runner hears of that."""

    gates: Gates

    async def open_lane(self, runner: RunnerId, index: int) -> LaneSession:
        lane: Any = Held(
            await super().open_lane(runner, index), self.gates, {"release": "is unlocked"}
        )
        return lane


def opening(settings: Settings, gates: Gates) -> OpenStorage:
    def make(identity: UUID | None, clock: Clock) -> Storage:
        storage = Storage(
            settings.database(), identity=identity, shards_per_group=settings.shards_per_group
        )
        storage.gates = gates
        return storage

    return make


async def test_a_hand_over_against_a_shard_that_is_wanted_again(dsn: str) -> None:
    """G1, G3: what was sent is handled once, and who wants it has it in the end; under the same
    epoch if nobody had stopped to serve it, else under a later one."""
    gates, log = Gates(), list[str]()
    settings = Settings(dsn=dsn, shards_per_group=1)
    light = Runner(
        settings.model_copy(update={"weight": 0.001}), open_storage=opening(settings, gates)
    ).register(Actor(gates, log))
    kept: list[bool] = []

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        log.clear()
        await eventually(lambda: light.epochs)
        before = light.epochs
        client = light.client
        heavy = Runner(settings.model_copy(update={"weight": 1000.0})).register(Actor(gates, log))
        await gates.close(["a ends"])
        await client.tell(client.entity(Actor, "a").plays)
        await eventually(lambda: log == ["a begins"])
        await heavy.__aenter__()
        (shard,) = delivery(light).shards.values()
        await eventually(lambda: shard.leaving is not None)
        await client.tell(client.entity(Actor, "b").plays)

        async def give() -> None:
            await eventually(lambda: shard.leaving is None or not shard.alive, every=0.005)

        async def leave() -> None:
            await gates("is wanted again")
            await heavy.__aexit__(None, None, None)
            await eventually(lambda: ownership(light).wanted, every=0.005)

        yield {"hand-over": give, "heavy": leave}

        await eventually(lambda: light.epochs)
        played = ["a begins", "a ends", "b begins", "b ends"]
        await eventually(lambda: sorted(log) == played)
        kept.append(light.epochs == before)
        assert kept[-1] or [*light.epochs.values()] > [*before.values()]

    sides = {
        "hand-over": ("a ends", "is unlocked", "after is unlocked"),
        "heavy": ("is wanted again",),
    }
    async with light:
        orders = await every_order(gates, sides, race)
    assert kept == [order == ("is wanted again",) for order in orders]
    assert len(orders) == 4


def delivery(runner: Runner) -> Any:
    assert runner._incarnation is not None
    return runner._incarnation.delivery


def ownership(runner: Runner) -> Any:
    assert runner._incarnation is not None
    return runner._incarnation._ownership
