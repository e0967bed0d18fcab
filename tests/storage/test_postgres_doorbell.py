"""The doorbell on PostgreSQL: who hears, what may be lost, and how it comes back."""

import asyncio
from collections.abc import Sequence

import asyncpg
import pytest

from engine.core.ids import ShardId, Snowflake
from engine.storage.bell import ALL, POST, Bell, parse_bell
from engine.storage.doorbell import channel_of
from engine.storage.postgres import PostgresStorage
from tests.eventually import eventually
from tests.storage.world import ONE, TWO, Process, World, message, next_id

IDLE = """
select max(state_change) from pg_stat_activity
where application_name like 'outlast:' || $1 || ':listener'
"""
END = """
select pg_terminate_backend(pid) from pg_stat_activity
where application_name = 'outlast:' || $1 || $2
"""


class Ear:
    """Hears and remembers, in order."""

    def __init__(self) -> None:
        self.heard: list[object] = []
        self.restored = 0

    def shards_rung(self, shards: Sequence[ShardId], *, old: bool = False) -> None:
        self.heard.extend(shards)

    def replies_rung(self, requests: Sequence[Snowflake]) -> None:
        self.heard.extend(requests)

    def topology_rung(self) -> None:
        self.heard.append("topology")

    def doorbell_restored(self) -> None:
        self.restored += 1


async def listening(process: Process) -> Ear:
    ear = Ear()
    process.storage.doorbell.listen(ear)
    await eventually(lambda: process.storage.doorbell.healthy)
    return ear


async def test_the_owner_of_now_is_rung_not_the_owner_of_before(postgres: World) -> None:
    former, lane = await postgres.runner_with_lane()
    owner, other = await postgres.runner_with_lane()
    old_ear, ear = await listening(former), await listening(owner)
    await lane.acquire([ONE, TWO])
    await lane.release([ONE])
    await other.acquire([ONE])
    client = await postgres.process(register=False)

    client.storage.doorbell.ring_shards([ONE])
    await eventually(lambda: ear.heard)

    assert ear.heard == [ONE]
    assert old_ear.heard == []


async def test_rings_while_one_is_being_sent_go_out_together(
    postgres: World, sql: asyncpg.Connection
) -> None:
    owner, lane = await postgres.runner_with_lane()
    await lane.acquire([ONE])
    ear = await listening(owner)
    doorbell = owner.storage.doorbell

    for _ in range(1000):
        doorbell.ring_shards([ONE])
    await eventually(lambda: ear.heard)

    assert len(ear.heard) <= 2


async def test_more_waiters_than_a_payload_holds_are_all_told(postgres: World) -> None:
    waiter, finisher = await postgres.process(register=False), await postgres.process()
    ear = await listening(waiter)
    ids = [Snowflake(2**62 + n) for n in range(5000)]
    await waiter.storage.watch(ids)

    finisher.storage.doorbell.ring_replies(ids)

    await eventually(lambda: len(ear.heard) == len(ids))
    assert sorted(ear.heard) == ids  # type: ignore[type-var]


async def test_more_shards_than_a_payload_holds_are_all_rung(dsn: str) -> None:
    async with PostgresStorage(dsn, shards_per_group=3000) as storage:
        await storage.ensure_groups(["wide"])
        owner = Process(
            storage=storage,
            runner=storage.identity,  # type: ignore[arg-type]
            registry=await storage.open_registry(storage.identity),  # type: ignore[arg-type]
        )
        ear = await listening(owner)
        connection = await asyncpg.connect(dsn)
        await connection.execute("update engine.shards set runner_id = $1", storage.identity)
        await connection.close()
        shards = [ShardId("wide", number) for number in range(1, 3001)]

        storage.doorbell.ring_shards(shards)

        await eventually(lambda: len(ear.heard) == 3000)
        assert sorted(ear.heard) == shards  # type: ignore[type-var]


async def test_a_listener_that_was_cut_off_listens_again_and_says_so(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process = await postgres.process()
    ear = await listening(process)
    await eventually(lambda: ear.restored == 1)

    await sql.fetch(END, str(process.runner), ":listener")
    await eventually(lambda: ear.restored == 2)
    assert process.storage.doorbell.healthy
    process.storage.doorbell.ring_topology()

    await eventually(lambda: ear.heard == ["topology"])


async def test_an_outage_is_known_while_it_lasts(postgres: World, sql: asyncpg.Connection) -> None:
    process = await postgres.process()
    await listening(process)
    seen: list[bool] = []

    await sql.fetch(END, str(process.runner), ":listener")
    await eventually(lambda: seen.append(process.storage.doorbell.healthy) or not seen[-1], every=0)

    await eventually(lambda: process.storage.doorbell.healthy)


async def test_a_ringer_that_was_cut_off_rings_again(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process = await postgres.process()
    ear = await listening(process)
    process.storage.doorbell.ring_topology()
    await eventually(lambda: ear.heard)

    await sql.fetch(END, str(process.runner), ":ringer")

    async def rung_again() -> bool:
        process.storage.doorbell.ring_topology()
        return len(ear.heard) > 1

    await eventually(rung_again)


async def test_ringing_without_a_server_raises_nothing(postgres: World, dsn: str) -> None:
    nowhere = PostgresStorage("postgresql://nobody@127.0.0.1:1/none")

    nowhere.doorbell.ring_topology()
    nowhere.doorbell.ring_replies([next_id()])
    await asyncio.sleep(0.05)

    assert not nowhere.doorbell.healthy
    await nowhere.close()


async def test_what_is_rung_before_closing_is_still_sent(postgres: World, dsn: str) -> None:
    process = await postgres.process()
    ear = await listening(process)

    async with PostgresStorage(dsn) as brief:
        brief.doorbell.ring_topology()

    await eventually(lambda: ear.heard == ["topology"])


async def test_a_listener_that_hears_nothing_asks_nothing(
    postgres: World, sql: asyncpg.Connection
) -> None:
    process = await postgres.process()
    await listening(process)
    before = await sql.fetchval(IDLE, str(process.runner))

    await asyncio.sleep(0.5)

    assert await sql.fetchval(IDLE, str(process.runner)) == before


async def test_a_notification_that_is_none_of_ours_is_passed_over(
    postgres: World, sql: asyncpg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    process = await postgres.process()
    ear = await listening(process)
    channel = channel_of(process.runner)

    for payload in ("s:1:2; drop", "x", "s:5:1", "t"):
        await sql.execute("select pg_notify($1, $2)", channel, payload)
    await eventually(lambda: ear.heard)

    assert ear.heard == ["topology"]
    assert "1 notifications were not understood" in caplog.text
    assert len(caplog.records) == 1, "whoever sends many does not fill the log"


async def test_a_waiter_is_told_when_it_watched_before_it_read(postgres: World) -> None:
    waiter, finisher = await postgres.process(register=False), await postgres.process()
    ear = Ear()
    waiter.storage.doorbell.listen(ear)
    request = message()

    await waiter.storage.watch([request.envelope.request_id])  # waits until LISTEN is in force
    finisher.storage.doorbell.ring_replies([request.envelope.request_id])

    await eventually(lambda: ear.heard == [request.envelope.request_id])


@pytest.mark.parametrize(
    ("payload", "bell"),
    [
        ("t", ALL),
        ("r:1,22", Bell(replies=(Snowflake(1), Snowflake(22)))),
        ("a:1,22", Bell(acks=(Snowflake(1), Snowflake(22)))),
        ("v", POST),
        ("s:-5:1,7:300", Bell(shards=((-5, 1), (7, 300)))),
        *((bad, None) for bad in ("", "t ", "r:", "r:1,", "r:-1", "s:1", "s:1:2:3", "r:٣", None)),
        *((bad, None) for bad in ("a:", "a:1,", "a:x", "b:1", "v:1", "V", "r:9223372036854775808")),
    ],
)
def test_payloads_are_read_strictly(payload: object, bell: Bell | None) -> None:
    assert parse_bell(payload) == bell


async def test_no_notifications_means_no_connections(dsn: str, sql: asyncpg.Connection) -> None:
    async with PostgresStorage(dsn, notifications=False, shards_per_group=12) as storage:
        await storage.ensure_groups(["default"])
        storage.doorbell.listen(Ear())
        storage.doorbell.ring_shards([ONE])
        await storage.save([message(wait=True)])
        await storage.watch([next_id()])

        names = await sql.fetch(
            "select distinct application_name from pg_stat_activity"
            " where application_name like 'outlast:' || $1 || ':%'",
            str(storage.identity),
        )
        assert [name for (name,) in names] == [f"outlast:{storage.identity}:pool"]
        assert await sql.fetchval("select count(*) from engine.waiters") == 0


async def test_waiters_of_processes_that_are_gone_are_swept_and_no_others(
    postgres: World, sql: asyncpg.Connection
) -> None:
    lives = await postgres.process(register=False)
    awaited = next_id()
    await lives.storage.watch([awaited])
    await sql.execute("insert into engine.waiters values (1, 'outlast_gone'), (2, 'outlast_gone')")

    assert await lives.storage.sweep_waiters() == 2
    assert await sql.fetch("select request_id from engine.waiters") == [(awaited,)]
    assert await lives.storage.sweep_waiters() == 0
