"""A login that may only SELECT can look at everything."""

from collections.abc import Iterator
from urllib.parse import urlsplit
from uuid import uuid4

import psycopg
import pytest
from psycopg.sql import SQL, Identifier, Literal

from tests.cli.orders import Broken, Slow
from tests.cli.terminal import do, served


@pytest.fixture
def reader_dsn(dsn: str) -> Iterator[str]:
    """The test's database for a role with SELECT and nothing else."""
    name, password = f"reader_{uuid4().hex}", uuid4().hex
    role = Identifier(name)
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(SQL("create role {} login password {}").format(role, Literal(password)))
        connection.execute(SQL("grant usage on schema engine to {}").format(role))
        connection.execute(SQL("grant select on all tables in schema engine to {}").format(role))
        try:
            where = urlsplit(dsn)
            yield where._replace(netloc=f"{name}:{password}@{where.hostname}:{where.port}").geturl()
        finally:
            connection.execute(SQL("drop owned by {}").format(role))
            connection.execute(SQL("drop role {}").format(role))


async def test_looking_needs_select_only(dsn: str, reader_dsn: str) -> None:
    async with served(dsn) as client:
        await client.execute(Slow, 0, key="s-1")
        await client.start(Broken, "be", key="b-1")
        for command, code in {
            "ls": 0,
            "show s-1": 0,
            "why s-1": 0,
            "history s-1": 0,
            "tail s-1": 0,
            "poll s-1": 0,
            "join s-1": 0,
            "join b-1": 1,
            "runners": 0,
            "shards": 0,
            "migrate --check": 0,
        }.items():
            ended = await do(*command.split(), dsn=reader_dsn)
            assert ended.code == code, (command, ended)
            assert ended.out or code, command
        doctor = await do("doctor", dsn=reader_dsn)

    assert doctor.lines, doctor
    assert not doctor.err


async def test_acting_says_what_is_missing(dsn: str, reader_dsn: str) -> None:
    async with served(dsn) as client:
        await client.execute(Slow, 0, key="s-1")
        start = ["start", "Slow", "0", "--key", "s-2"]
        ended = await do(*start, dsn=reader_dsn)

    assert ended.code == 7
    assert "may not do this" in ended.err
