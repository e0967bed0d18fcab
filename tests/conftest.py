"""The tests' databases.

One server for the whole run: that of ``OUTLAST_TEST_DSN``, else an embedded one that all workers
share. Each worker migrates a template once; each test that asks for ``dsn`` gets a clone of it.
"""

import asyncio
import itertools
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

import hypothesis
import psycopg
import pytest
from psycopg.sql import SQL, Identifier
from pytest_postgresql import factories
from pytest_postgresql.executors import NoopExecutor

from engine.embedded import EmbeddedPostgres
from engine.storage.migrate import migrate

PREFIX = "outlast_test"
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.register_profile("full", max_examples=2_000, deadline=None)
hypothesis.settings.load_profile("suite")  # the option --hypothesis-profile goes before
CLONES = itertools.count(1)
NewDatabase = Callable[[], AbstractContextManager[str]]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--hostile",
        action="append",
        metavar="NAME[,NAME]",
        help="run the behaviour suite of tests/cluster under these settings (see hostility.py"
        " there), 'all' of them, or '' for none; once for each time this is given (without it:"
        " plainly, and under two combinations)",
    )
    parser.addoption(
        "--scale",
        choices=["small", "medium", "full"],
        default="small",
        help="how many messages the test of scale sends: 6,000, 100,000 or 1,000,000; with 'full',"
        " the kill matrices also try every place instead of a sample, more executions sleep, and"
        " all backends are terminated for ten minutes",
    )
    parser.addoption(
        "--chaos-seconds",
        type=float,
        default=20.0,
        help="how long tests/chaos/test_chaos.py does harm to a cluster (continuous integration:"
        " 120); more than two minutes are several rounds",
    )
    parser.addoption(
        "--chaos-seed",
        type=int,
        help="what decides which faults and calls these are (without it: another one each time)",
    )


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What has a time-out of its own comes first, so that no worker is alone with it at the end;
    and what works hard evenly among what waits for ``live`` processes."""
    waits: list[pytest.Item] = []
    works: list[pytest.Item] = []
    for item in items:
        if item.get_closest_marker("timeout"):
            (waits if "live" in getattr(item, "fixturenames", ()) else works).append(item)
    places = {each: n / len(part) for part in (waits, works) for n, each in enumerate(part)}
    places |= {each: -1 for each in works if each.path.name == "test_chaos.py"}  # CI's longest
    items.sort(key=lambda item: places.get(item, 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where the test server is, in the words of pytest-postgresql."""

    host: str
    port: int
    user: str
    password: str | None
    maintenance_dbname: str
    options: str = ""
    template_dbname: str | None = None

    @classmethod
    def at(cls, dsn: str) -> "Server":
        parts = urlsplit(dsn)
        return cls(
            host=parts.hostname or "127.0.0.1",
            port=parts.port or 5432,
            user=unquote(parts.username or "postgres"),
            password=unquote(parts.password) if parts.password else None,
            maintenance_dbname=parts.path.lstrip("/") or "postgres",
        )


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """The server that this run uses."""
    if dsn := os.environ.get("OUTLAST_TEST_DSN"):
        yield Server.at(dsn)
    else:
        with EmbeddedPostgres(Path(__file__).parents[1], durable=False) as embedded:
            found = Server.at(embedded.dsn)
            _drop_what_killed_runs_left(found)
            yield found


def _drop_what_killed_runs_left(server: Server) -> None:
    """Databases carry the process id of their run; on our own server we know which have ended."""
    with psycopg.connect(_dsn(server, "postgres"), autocommit=True) as connection:
        names = connection.execute(
            "select datname from pg_database where datname like %s", [f"{PREFIX}%"]
        ).fetchall()
        for (name,) in names:
            if not _is_alive(int(name.removeprefix(PREFIX).split("_")[1])):
                quoted = Identifier(name)
                with suppress(psycopg.errors.Error):  # another worker drops it as well
                    connection.execute(SQL("alter database {} is_template false").format(quoted))
                    connection.execute(SQL("drop database {} with (force)").format(quoted))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@pytest.fixture(scope="session")
def server_dsn(server: Server) -> str:
    """The server's maintenance database, for tests that end sessions or watch statistics."""
    return _dsn(server, server.maintenance_dbname)


def _load_schema(
    *, host: str, port: int, user: str, dbname: str, password: str, **_: object
) -> None:
    server = Server(host=host, port=port, user=user, password=password, maintenance_dbname=dbname)
    asyncio.run(migrate(_dsn(server, dbname)))


template = factories.postgresql_noproc(
    depends_on="server", dbname=f"{PREFIX}_{os.getpid()}_", load=[_load_schema]
)


@pytest.fixture
def dsn(new_database: NewDatabase) -> Iterator[str]:
    """A database of this test's own, migrated (schema ``engine``) and empty."""
    with new_database() as dsn:
        yield dsn


@pytest.fixture(scope="session")
def new_database(
    server: Server, maintenance: psycopg.Connection, template: NoopExecutor
) -> NewDatabase:
    """Makes such databases, for what is shared by many tests."""
    return partial(_database, server, maintenance, template.template_dbname)


@pytest.fixture
def empty_dsn(server: Server, maintenance: psycopg.Connection) -> Iterator[str]:
    """A database of this test's own without the engine's schema."""
    with _database(server, maintenance, "template1") as dsn:
        yield dsn


@pytest.fixture(scope="session")
def maintenance(server_dsn: str) -> Iterator[psycopg.Connection]:
    """The worker's own session on the server."""
    with psycopg.connect(server_dsn, autocommit=True) as connection:
        yield connection


@contextmanager
def _database(server: Server, maintenance: psycopg.Connection, template: str) -> Generator[str]:
    name = f"{PREFIX}_{os.getpid()}_{next(CLONES)}"
    words = "create database {} template {}"
    if maintenance.info.server_version >= 150_000:  # before, there was no other way
        words += " strategy file_copy"
    maintenance.execute(SQL(words).format(Identifier(name), Identifier(template)))
    try:
        yield _dsn(server, name)
    finally:
        maintenance.execute(SQL("drop database {} with (force)").format(Identifier(name)))


def _dsn(server: Server | NoopExecutor, database: str) -> str:
    login = quote(server.user)
    if server.password:
        login += f":{quote(server.password)}"
    return f"postgresql://{login}@{server.host}:{server.port}/{database}"


@pytest.fixture(scope="session", autouse=True)
def _without_settings_of_the_shell() -> Iterator[None]:
    """Tests say what they mean: no ``OUTLAST_…`` or ``PG…`` variable of the developer's."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith(("OUTLAST_", "PG"))]:
            if name not in {"OUTLAST_TEST_DSN", "OUTLAST_PG_BIN"}:
                patch.delenv(name)
        yield
