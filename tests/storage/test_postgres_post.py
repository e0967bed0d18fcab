"""Volatile messages on PostgreSQL: what sending one may cost, and what a lost connection does."""

import asyncio

import asyncpg
import pytest

from engine.core.errors import StorageUnavailable
from engine.storage.protocol import Post, PostKind
from tests.eventually import eventually
from tests.storage.world import ONE, Process, World, next_id

SENDING = """
select pid from pg_stat_activity
where application_name = 'outlast:' || $1 || ':post' and wait_event = 'PgSleep'
"""
TAKING = """
select pid from pg_stat_activity
where application_name = 'outlast:' || $1 || ':pool' and wait_event_type = 'Lock'
"""
SLOW = """
create function dawdle() returns trigger language plpgsql as $$
begin
    if new.body = 'slow' then perform pg_sleep(0.3); end if;
    return new;
end $$;
create trigger dawdle before insert on engine.post for each row execute function dawdle();
"""
SETTINGS = """
create table settings (value text);
create function note_settings() returns trigger language plpgsql as $$
begin
    insert into settings values (current_setting('synchronous_commit'));
    return new;
end $$;
create trigger note_settings before insert on engine.post
    for each row execute function note_settings();
"""


def to(receiver: Process, body: bytes) -> Post:
    return Post(
        kind=PostKind.REQUEST, to=receiver.storage.identity, request_id=next_id(), body=body
    )


async def bodies(process: Process) -> list[bytes]:
    return [received.body for received in await process.storage.take_post()]


async def test_nobody_waits_for_a_disk(postgres: World, sql: asyncpg.Connection) -> None:
    sender, receiver = await postgres.process(), await postgres.process()
    await sql.execute(SETTINGS)

    await sender.storage.post([to(receiver, b"1")])

    assert await sql.fetchval("select value from settings") == "off"
    kept = "select relpersistence::text from pg_class where oid = 'engine.post'::regclass"
    assert await sql.fetchval(kept) == "u"


async def test_calls_made_at_once_share_statements_and_keep_their_order(
    postgres: World, sql: asyncpg.Connection
) -> None:
    sender, receiver = await postgres.process(), await postgres.process()
    await sender.storage.post([to(receiver, b"first")])
    sent = [b"%d" % n for n in range(300)]

    await asyncio.gather(*(sender.storage.post([to(receiver, each)]) for each in sent))

    assert await sql.fetchval("select count(distinct xmin::text) from engine.post") <= 3
    assert await bodies(receiver) == [b"first", *sent]


async def test_a_caller_that_goes_away_takes_no_message_with_it(
    postgres: World, sql: asyncpg.Connection
) -> None:
    sender, receiver = await postgres.process(), await postgres.process()
    await sql.execute(SLOW)
    slow = asyncio.ensure_future(sender.storage.post([to(receiver, b"slow")]))
    await eventually(lambda: sql.fetchval(SENDING, str(sender.runner)))
    waiting = [
        asyncio.ensure_future(sender.storage.post([to(receiver, body)])) for body in (b"2", b"3")
    ]
    await asyncio.sleep(0)

    slow.cancel()
    waiting[0].cancel()
    (posted,) = await waiting[1]

    assert posted.runner == receiver.runner
    assert await bodies(receiver) == [b"slow", b"2", b"3"]


async def test_a_message_whose_connection_is_lost_is_not_sent_again(
    postgres: World, sql: asyncpg.Connection
) -> None:
    sender, receiver = await postgres.process(), await postgres.process()
    await sql.execute(SLOW)
    lost = asyncio.ensure_future(sender.storage.post([to(receiver, b"slow")]))
    pid = await eventually(lambda: sql.fetchval(SENDING, str(sender.runner)))

    await sql.fetchval("select pg_terminate_backend($1)", pid)

    with pytest.raises(StorageUnavailable):
        await lost
    await sender.storage.post([to(receiver, b"next")])
    assert await bodies(receiver) == [b"next"]


async def test_a_message_for_a_group_that_nobody_has_made_has_no_receiver(
    postgres: World,
) -> None:
    sender = await postgres.process()
    nowhere = Post(
        kind=PostKind.REQUEST, to=ONE._replace(group="elsewhere"), request_id=next_id(), body=b""
    )

    (posted,) = await sender.storage.post([nowhere])

    assert posted.runner is None


async def test_a_message_whose_connection_is_lost_on_the_way_in_is_read_again(
    postgres: World, sql: asyncpg.Connection
) -> None:
    sender, receiver = await postgres.process(), await postgres.process()
    await sender.storage.post([to(receiver, b"1")])
    # The statement waits for this lock, so that it can be ended in the middle.
    async with sql.transaction():
        await sql.execute("lock table engine.post in access exclusive mode")
        taking = asyncio.ensure_future(bodies(receiver))
        pid = await eventually(lambda: sql.fetchval(TAKING, str(receiver.runner)))
        await sql.fetchval("select pg_terminate_backend($1)", pid)

    assert await taking == [b"1"]
    assert await bodies(receiver) == []


async def test_rows_that_nothing_of_ours_wrote_are_passed_over(
    postgres: World, sql: asyncpg.Connection
) -> None:
    sender, receiver = await postgres.process(), await postgres.process()
    await sender.storage.post([to(receiver, b"1")])
    for kind, group_id, shard in ((99, None, None), (0, 123456789, 1), (0, 123456789, None)):
        await sql.execute(
            "insert into engine.post (channel, kind, group_id, shard, request_id, body)"
            " values ($1, $2, $3, $4, -5, '')",
            receiver.storage.identity,
            kind,
            group_id,
            shard,
        )
    await sender.storage.post([to(receiver, b"2")])

    assert await bodies(receiver) == [b"1", b"2"]
    assert await bodies(receiver) == []
    assert await sql.fetchval("select count(*) from engine.post") == 0
