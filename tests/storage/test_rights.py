"""The grants are just what the queries need: asked of PostgreSQL, as each kind of login."""

import re
from collections import defaultdict

import asyncpg
import pytest

from engine.core.errors import StorageUnavailable
from engine.storage.migrate import check, migrate
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import RunnerRow
from engine.storage.queries import Queries
from engine.storage.rights import CLIENT_QUERIES, WRITES, Kind, needed_for
from engine.storage.tables import metadata_for
from tests.eventually import eventually
from tests.roles import role
from tests.storage.test_postgres_registry import TTL, silence
from tests.storage.world import ONE, World, message, postgres_world

QUERIES = Queries("engine")
# To end sessions is a matter of whose they are, not of tables.
READS = {name for name in QUERIES.names() if needed_for(QUERIES[name]) is Kind.INSPECTOR}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Kind.WORKER, set(QUERIES.names())),
        (Kind.CLIENT, READS | CLIENT_QUERIES),
        (Kind.INSPECTOR, READS),
    ],
    ids=lambda value: value.value if isinstance(value, Kind) else "",
)
async def test_each_kind_of_login_may_run_its_queries_and_no_other(
    dsn: str, kind: Kind, expected: set[str]
) -> None:
    with role(dsn, kind) as login:
        connection = await asyncpg.connect(login)
        try:
            allowed = {name for name in QUERIES.names() if await may_run(connection, name)}
        finally:
            await connection.close()

    assert allowed == expected


async def may_run(connection: asyncpg.Connection, name: str) -> bool:
    """Rights are checked when a plan is begun, which explaining does, and nothing is written."""
    await connection.execute(f"prepare asked as {QUERIES[name]}")
    holes = max(map(int, re.findall(r"\$(\d+)", QUERIES[name])), default=0)
    arguments = f"({', '.join(['null'] * holes)})" if holes else ""
    try:
        await connection.execute(f"explain execute asked{arguments}")
    except asyncpg.InsufficientPrivilegeError:
        return False
    finally:
        await connection.execute("deallocate asked")
    return True


@pytest.mark.parametrize("kind", [Kind.WORKER, Kind.CLIENT])
def test_nothing_is_granted_that_no_query_does(kind: Kind) -> None:
    done = defaultdict[str, set[str]](set)
    for name in QUERIES.names() if kind is Kind.WORKER else CLIENT_QUERIES:
        text = QUERIES[name]
        for verb, table in re.findall(r'(insert into|update|delete from) "engine"\.(\w+)', text):
            done[table].add(verb.split()[0])
        for table, _ in re.findall(
            r'from "engine"\.(\w+) \w+\s+where ((?:(?!from "engine").)*?)\bfor update',
            text,
            re.DOTALL,
        ):
            done[table].add("update")
        for table, tail in re.findall(
            r'insert into "engine"\.(\w+)((?:(?!insert).)*)', text, re.DOTALL
        ):
            if "do update" in tail:
                done[table].add("update")

    assert {table: set(rights.split(", ")) for table, rights in WRITES[kind].items()} == done
    assert done.keys() <= {table.name for table in metadata_for("engine").tables.values()}


async def test_grants_take_back_what_was_granted_before(dsn: str) -> None:
    with role(dsn, Kind.WORKER, Kind.CLIENT) as login:
        async with PostgresStorage(login) as storage:
            await storage.ensure_groups(["default"])
            await storage.save([message()])
            with pytest.raises(StorageUnavailable, match=r"grants ROLE --as worker"):
                await storage.write_pause("Fulfil", paused=True, reason="", by="me")


async def test_grants_hold_for_tables_that_are_made_later(
    dsn: str, sql: asyncpg.Connection
) -> None:
    with role(dsn, Kind.INSPECTOR) as login:
        await sql.execute("create table engine.later (id int)")
        connection = await asyncpg.connect(login)
        try:
            assert await connection.fetch("select * from engine.later") == []
        finally:
            await connection.close()


async def test_an_owner_migrates_and_needs_no_other_right(empty_dsn: str) -> None:
    with role(empty_dsn, Kind.OWNER) as login:
        await migrate(login)
        await migrate(login)
        await check(login)


async def test_a_login_without_grants_is_told_how_to_get_them(dsn: str) -> None:
    with role(dsn) as login, pytest.raises(StorageUnavailable, match=r"--as inspector"):
        async with PostgresStorage(login):
            pytest.fail("it was let in")


async def test_a_client_may_not_be_a_runner(dsn: str) -> None:
    with role(dsn, Kind.CLIENT) as login:
        async with postgres_world(login) as world:
            client = await world.process(register=False)
            with pytest.raises(StorageUnavailable, match=r"runner.*--as worker"):
                await client.registry.register(
                    RunnerRow(id=client.runner, groups=["default"], host="here")
                )
            lane = await client.lane()
            world.stack.push_async_callback(lane.close)
            assert await lane.acquire([ONE]) == {}  # it is no live runner


async def test_a_login_that_may_not_end_anothers_sessions_ends_those_it_may(
    dsn: str, postgres: World, sql: asyncpg.Connection
) -> None:
    dead, lane = await postgres.runner_with_lane()  # of the superuser, whom nobody may end
    await lane.acquire([ONE])
    with role(dsn, Kind.WORKER) as mine, role(dsn, Kind.WORKER) as other:
        settings = {"application_name": f"outlast:{dead.runner}:lane-9"}
        own = await asyncpg.connect(mine, server_settings=settings)
        foreign = await asyncpg.connect(other, server_settings=settings)
        async with postgres_world(mine) as world:
            peer = await world.process()
            await silence(sql, dead)
            assert await peer.registry.bury(dead.runner, by=peer.runner, ttl=TTL)
            left = await peer.registry.end_sessions(dead.runner)

            await eventually(own.is_closed)
            assert left >= 3
            assert not foreign.is_closed()
            assert not lane.closed
            assert await peer.registry.unburied() == [dead.runner]

            await sql.execute("grant pg_signal_backend to " + await _name(sql, mine))
            await peer.registry.end_sessions(dead.runner)
            await eventually(foreign.is_closed)


async def _name(sql: asyncpg.Connection, dsn: str) -> str:
    connection = await asyncpg.connect(dsn)
    try:
        return str(await connection.fetchval("select quote_ident(current_user)"))
    finally:
        await connection.close()


@pytest.mark.parametrize("kind", [None, Kind.CLIENT])
async def test_a_session_that_only_has_a_runners_name_holds_no_takeover_up(
    dsn: str, postgres: World, sql: asyncpg.Connection, kind: Kind | None
) -> None:
    dead, peer = await postgres.process(), await postgres.process()
    with role(dsn, *([kind] if kind else [])) as login:
        settings = {"application_name": f"outlast:{dead.runner}:lane-0"}
        forged = await asyncpg.connect(login, server_settings=settings)
        await silence(sql, dead)
        assert await peer.registry.bury(dead.runner, by=peer.runner, ttl=TTL)

        async def buried() -> bool:
            return await peer.registry.end_sessions(dead.runner) == 0

        await eventually(buried)
        assert not forged.is_closed()
        await forged.close()
