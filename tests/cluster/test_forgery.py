"""Who may connect can notify on our channels and take our locks: it does no harm, or is told."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from engine import Client, NotFound, Runner, Settings, Workflow, activity
from engine.core.ids import shard_of
from engine.workflow.token import StepToken
from tests.cli.terminal import do
from tests.eventually import eventually
from tests.roles import role

LONGEST = 7999
ROOM = 100 * 7 * LONGEST // 2


class Double(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        return await self.double(request)

    @activity
    async def double(self, number: int) -> int:
        return number * 2


def settings(dsn: str) -> Settings:
    return Settings(
        dsn=dsn,
        shards_per_group=4,
        poll_interval=timedelta(milliseconds=200),
        suspend_after=timedelta(milliseconds=20),
    )


@pytest.fixture
async def sql(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn)
    yield connection
    await connection.close()


def ids_from(first: int) -> str:
    """As many as a payload holds."""
    return ",".join(str(first + each) for each in range(390))


def payloads(group: int) -> list[str]:
    """Malformed, wrong by type or range, huge, hostile; and well-formed about what is not there."""
    hostile = [
        "",
        " ",
        "t\n",
        "x",
        "null",
        "{}",
        '"t"',
        "'; drop schema engine; --",
        "\x01\x7f",
        "�",
    ]
    wrong = ["s:", "s:1", "s:a:b", "s:-:1", "s:1:-1", "r:-1", "r:1.5", "r:1e9", "a:٣", "r:,", "v:1"]
    ranges = [f"s:{group}:0", f"s:{group}:5", f"s:{group}:99999", "s:9999999999:1", "s:-1:1"]
    ids = [
        "r:0",
        f"r:{(1 << 63) - 1}",
        f"r:{1 << 63}",
        "r:9999999999999999999",
        "a:1,2,3",
        "v",
        "t",
    ]
    numbers = ids_from(10**18)
    shards = ",".join([f"{group}:{1 + each % 4}" for each in range(500)])
    huge = ["x" * LONGEST, "1" * LONGEST, "s:" + "1:1," * 1999, f"r:{numbers}", f"a:{numbers}"]
    return [*hostile, *wrong, *ranges, *ids, *huge, f"s:{shards}"[:LONGEST], "r:" + "9" * 7990]


async def test_forged_notifications_neither_end_nor_stop_nor_fill_anybody(
    dsn: str, sql: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    async with Runner(settings(dsn)).register(Double()) as runner, Client(settings(dsn)) as client:
        assert await client.execute(Double, 1) == 2
        group = await sql.fetchval("select group_id from engine.shard_groups")
        forged = payloads(group)
        channels = await sql.fetch(
            "select distinct 'outlast_' || replace(split_part(application_name, ':', 2), '-', '')"
            " from pg_stat_activity where datname = current_database()"
            " and application_name like '%:listener' union all select 'outlast_all_engine'"
        )
        assert len(channels) == 4  # the runner's, its process's, the client's and everybody's
        before = await sessions(sql)
        with role(dsn) as forger:
            login = await asyncpg.connect(forger)
            for (channel,) in channels:
                await login.executemany(
                    "select pg_notify($1, $2)", [(channel, each) for each in forged]
                )
            assert await client.execute(Double, 2) == 4
            tracemalloc.start()
            held = size()
            for (channel,) in channels:
                await login.executemany(
                    "select pg_notify($1, $2)",
                    [
                        (channel, payload)
                        for n in range(100)
                        for payload in (
                            *(f"{n:07}" + each[:7990] for each in forged[-7:]),
                            *(kind + ids_from(10**18 + n * 1000) for kind in ("r:", "a:")),
                        )
                    ],
                )
            assert await client.execute(Double, 3) == 6
            grown = size() - held
            tracemalloc.stop()
            await login.close()

        # Of what is sent to one listener alone twice as much would be kept.
        assert grown < ROOM, f"{grown} bytes more"
        assert await sessions(sql) == before
        assert await client.execute(Double, 5) == 10
        assert set(runner.epochs.values()) == {1}
    complaints = [each for each in caplog.records if "not understood" in each.message]
    assert len(complaints) == 3, "one for each listener, however many there are"


def size() -> int:
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


async def sessions(sql: asyncpg.Connection) -> set[tuple[str, int]]:
    """Those that stay open however much is done: listeners and lanes."""
    rows = await sql.fetch(
        "select application_name, pid from pg_stat_activity where datname = current_database()"
        " and application_name ~ '^outlast:.*:(listener|lane-.)$'"
    )
    return {tuple(row) for row in rows}


@pytest.mark.parametrize("named", ["psql", "a live runner"])
async def test_somebody_who_holds_a_shards_lock_is_named_wherever_one_asks(
    dsn: str, sql: asyncpg.Connection, caplog: pytest.LogCaptureFixture, named: str
) -> None:
    async with Runner(settings(dsn)).register(Double()) as runner:
        await eventually(lambda: len(runner.epochs) == 4)
        id = str(runner.id)
        shard = shard_of("default", 4, "Double", "d-1")
        group = await sql.fetchval("select group_id from engine.shard_groups")
        application = f"outlast:{id}:lane-9" if named == "a live runner" else named
        with role(dsn) as login:
            thief = await asyncpg.connect(login, server_settings={"application_name": application})
            pid = await thief.fetchval("select pg_backend_pid()")
            waits = asyncio.ensure_future(
                thief.fetchval("select pg_advisory_lock($1, $2)", group, shard.number)
            )
            await eventually(lambda: queued(sql, pid))
            runner.crash()
            await waits
            execution = await runner.client.start(Double, 21, key="d-1")

            async def told() -> bool:
                return f"process {pid} " in caplog.text and shard not in runner.epochs

            await eventually(told)
            doctor = await do("doctor", dsn=dsn)
            why = await do("why", "d-1", dsn=dsn)
            found = [line for line in doctor.lines if f"process {pid} " in line["message"]]

            assert [line["topic"] for line in found] == ["locks"]
            assert str(shard) in found[0]["message"]
            assert f"pg_terminate_backend({pid})" in found[0]["fix"]
            assert f"process {pid} " in why.lines[0]["why"]
            assert caplog.text.count(f"process {pid} ") == 1

            await sql.execute("select pg_terminate_backend($1)", pid)
            assert await execution.join(timedelta(seconds=10)) == 42


async def queued(sql: asyncpg.Connection, pid: int) -> bool:
    waiting = "select count(*) from pg_locks where pid = $1 and not granted"
    return bool(await sql.fetchval(waiting, pid))


async def test_a_forged_token_makes_no_shards(dsn: str, sql: asyncpg.Connection) -> None:
    forged = StepToken(
        group="forged", workflow="Pay", id="p-1", run=1, name="charge", ordinal=0, attempt=1
    )
    async with Client(settings(dsn)) as client:
        with pytest.raises(NotFound, match="Pay/p-1"):
            await client.complete(str(forged), 1)
        with pytest.raises(NotFound, match="Pay/p-1"):
            await client.fail(str(forged), "no")
    ended = await do("complete", str(forged), "1", dsn=dsn)

    assert ended.code == 3
    assert await sql.fetchval("select count(*) from engine.shard_groups") == 0
