"""The cluster of a test: any number of processes over one database.

``cluster`` is one of storages within this process; ``live`` one of real runner processes.
"""

from collections.abc import AsyncIterator, Callable, Generator
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from engine.core.clock import SystemClock
from engine.storage.memory import MemoryDatabase, MemoryStorage
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import Storage
from tests.cluster.hostility import combination
from tests.cluster.live import Live, LiveClusters, NewDatabase
from tests.cluster.peers import GROUP, SHARDS

NewStorage = Callable[..., PostgresStorage | MemoryStorage]


class Cluster:
    """Opens the storages of processes, and closes them when the test is over."""

    def __init__(self, stack: AsyncExitStack, storage: NewStorage) -> None:
        self.shards = SHARDS
        self._stack = stack
        self._storage = storage

    async def process(self, *, notifications: bool = True) -> Storage:
        """One more process's storage."""
        storage = self._storage(notifications=notifications)
        await self._stack.enter_async_context(storage)
        await storage.ensure_groups([GROUP])
        return storage


@pytest.fixture(params=["memory", "postgres"])
def new_storage(request: pytest.FixtureRequest) -> NewStorage:
    """How a process of this test's cluster gets at its database."""
    if request.param == "postgres":
        return partial(PostgresStorage, request.getfixturevalue("dsn"), shards_per_group=SHARDS)
    return partial(MemoryStorage, MemoryDatabase(SystemClock()), shards_per_group=SHARDS)


@pytest.fixture(params=["memory", "postgres", "postgres without notifications"])
def where(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The settings of a ``TestCluster`` that say where its messages rest."""
    if request.param == "memory":
        return {}
    dsn = request.getfixturevalue("dsn")
    return {"dsn": dsn, "notifications": "without" not in request.param}


@pytest.fixture
async def cluster(new_storage: NewStorage) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        yield Cluster(stack, new_storage)


SIZES = (1, 2, 3)
ALWAYS = {"": SIZES, "all": (2,), "one-shard,two-residents": (3,)}
"""What every run of the suite covers: hostile settings, each combination with so many runners."""
FAILED = pytest.StashKey[bool]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "runners(*sizes): so many processes `live` has, each once")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that asks for ``live`` runs with one, two and three runners, or with as many as it
    is marked for, plainly and under hostile settings: those of the option, else a few."""
    if "live_clusters" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("runners")
    sizes = SIZES if marker is None else marker.args
    chosen = metafunc.config.getoption("hostile")
    under = ALWAYS if chosen is None else dict.fromkeys(chosen, SIZES)
    metafunc.parametrize(
        "live_clusters",
        [
            pytest.param((size, combination(text)), id=f"{size} {text}".strip())
            for text, wanted in under.items()
            for size in ([each for each in sizes if each in wanted] or sizes[:1])
        ],
        indirect=True,
        scope="session",
    )


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def live_clusters(
    request: pytest.FixtureRequest,
    new_database: NewDatabase,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[LiveClusters]:
    size, hostility = request.param
    clusters = LiveClusters(
        size=size,
        hostility=hostility,
        new_database=new_database,
        logs=tmp_path_factory.mktemp("live"),
    )
    yield clusters
    await clusters.close()


@pytest_asyncio.fixture(loop_scope="session")
async def live(request: pytest.FixtureRequest, live_clusters: LiveClusters) -> AsyncIterator[Live]:
    """Runners in processes of their own that own all shards between them; a test may kill them."""
    yield await live_clusters.take()
    if request.node.stash.get(FAILED, False):
        await live_clusters.close()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    item.stash[FAILED] = item.stash.get(FAILED, False) or report.failed
    return report
