"""Fixtures for users' tests, found by pytest once outlast is installed; nothing to set up.

They are here, not in ``engine.testing``, because pytest imports its plugins for every run: this
module imports nothing of the engine until a test asks for a fixture. They work with pytest-asyncio,
with anyio's plugin and with neither, and beside one another under pytest-xdist.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from engine.testing import TestCluster


@pytest.fixture
def outlast_cluster() -> "type[TestCluster]":
    """``TestCluster``, for ``async with outlast_cluster(Fulfil(gateway)) as cluster:``. In memory,
    on a clock of its own; with ``dsn=outlast_dsn`` on PostgreSQL."""
    from engine.testing import TestCluster

    return TestCluster


@pytest.fixture(scope="session")
def outlast_server(pytestconfig: pytest.Config) -> Iterator[str]:
    """The DSN of a server to make databases on: that of OUTLAST_TEST_DSN, else an embedded one,
    which parallel workers share and which ends with the last of them."""
    named = os.environ.get("OUTLAST_TEST_DSN")
    if named:
        yield named
        return
    from engine.core.errors import EngineError
    from engine.embedded import EmbeddedPostgres

    try:
        server = EmbeddedPostgres(Path(pytestconfig.rootpath), durable=False)
    except EngineError as error:
        pytest.skip(f"no PostgreSQL to test on: set OUTLAST_TEST_DSN ({error})")
    with server:
        yield server.dsn


@pytest.fixture(scope="session")
def outlast_template(outlast_server: str) -> Iterator[str]:
    """The name of the migrated database that ``outlast_dsn`` copies."""
    from engine.testing.databases import template_database

    with template_database(outlast_server) as name:
        yield name


@pytest.fixture
def outlast_dsn(outlast_server: str, outlast_template: str) -> Iterator[str]:
    """The DSN of a database of this test's own: migrated, empty, and dropped afterwards."""
    from engine.testing.databases import new_database

    with new_database(outlast_server, outlast_template) as dsn:
        yield dsn
