"""Where the behaviour of workflows is shown: in memory on virtual time, and on PostgreSQL."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from engine.testing import TestCluster
from tests.eventually import eventually


@dataclass(frozen=True, slots=True)
class World:
    """The settings of a ``TestCluster`` that say where its executions rest."""

    options: dict[str, Any]

    @property
    def virtual(self) -> bool:
        return "dsn" not in self.options

    def cluster(self, *prototypes: Any, **settings: Any) -> TestCluster:
        return TestCluster(*prototypes, **{**self.options, **settings})

    async def until(self, cluster: TestCluster, condition: Callable[[], Awaitable[object]]) -> Any:
        """Let what can happen happen until a condition holds; time moves on."""

        async def looked() -> object:
            if self.virtual:
                await cluster.advance(timedelta(milliseconds=100))
            return await condition()

        return await eventually(looked, timeout=30)

    async def result(self, cluster: TestCluster, execution: Any) -> Any:
        """What an execution ends with, while time goes on."""

        async def ended() -> bool:
            return bool((await execution.describe()).status.finished)

        await self.until(cluster, ended)
        return await execution.join()


@pytest.fixture(params=["memory", "postgres", "memory, always replayed", "postgres, one shard"])
def world(request: pytest.FixtureRequest) -> World:
    options: dict[str, Any] = {}
    if "postgres" in request.param:
        options["dsn"] = request.getfixturevalue("dsn")
    if "replayed" in request.param:
        options["suspend_after"] = timedelta(0)
    if "one shard" in request.param:
        options["shards_per_group"] = 1
    return World(options)
