"""Volatile messages: never in a durable table, at most once, and no room is said at once."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from engine import MailboxFull, RequestFailed
from tests.cluster.characters import Booth, Hall
from tests.cluster.live import Live
from tests.eventually import eventually
from tests.written import forget, watch

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(120)]

KEPT_BY_RUNNERS = ["runners", "machine_ids", "shards"]
TABLES = """
    select relname from pg_class
    where relnamespace = 'engine'::regnamespace and relkind = 'r' and relpersistence = 'p'
        and relname <> all($1)
"""
WRITTEN = """
    select distinct name from public.written
    where request is null or request not in (select unnest($1::bigint[]))
"""


@asynccontextmanager
async def written(live: Live) -> AsyncIterator[set[str]]:
    """The durable tables to whose rows something was done meanwhile, and the post, when it ends;
    but for what is of requests that were there before, by another test."""
    found: set[str] = set()
    durable = await live.database.fetch(TABLES, KEPT_BY_RUNNERS)
    tables = ["post", *(row["relname"] for row in durable)]
    stored = await live.database.fetch("select request_id from engine.envelopes")
    try:
        await watch(live.database, tables)
        yield found
        rows = await live.database.fetch(WRITTEN, [row["request_id"] for row in stored])
        found.update(row["name"] for row in rows)
    finally:
        await forget(live.database, tables)


async def test_a_volatile_message_to_another_process_goes_through_an_unlogged_table_alone(
    live: Live,
) -> None:
    ids = live.names(5)
    async with asyncio.timeout(100):
        async with written(live) as persisted:
            assert await live.client.entity(Booth, ids[0]).echo("stored") == "stored"
        async with written(live) as volatile:
            for id in ids:
                assert await live.client.entity(Booth, id).say(id) == id
    assert persisted >= {"envelopes", "inbox", "replies"}
    assert volatile == {"post"}


async def test_a_volatile_message_within_a_process_is_no_statement_at_all(live: Live) -> None:
    """Its runner sends hardly anything meanwhile: its own looks at the database, now and then."""
    id, times = live.name(), 2000
    command = {"entity": "Hall", "entity_id": id, "method": "say", "args": ["here"]}
    async with asyncio.timeout(100):
        owner = await live.owner(live.address(Hall, id).shard)
        async with written(live) as tables:
            before = await owner.statements()
            assert await owner.ask("calls", times=times, **command) == "here"
            looks = await owner.statements() - before
    # Where all mailboxes hold one message, each that was full has the inbox looked at anew, once.
    assert looks < (times * 1.1 if live.hostility.name else times / 50)
    assert tables == set()


async def test_a_full_mailbox_is_said_at_once_to_senders_of_any_process(live: Live) -> None:
    """One is handled, one waits; whoever is too much is told before there is room again."""
    id, gate = live.name(), live.name("gate")
    command = {"entity": "Booth", "entity_id": id, "method": "occupy", "args": [gate]}
    async with asyncio.timeout(100), live.another_client() as other:
        calls = [
            asyncio.ensure_future(client.entity(Booth, id).occupy(gate))
            for client in (live.client, other)
            for _ in range(3)
        ]
        await eventually(lambda: sum(call.done() for call in calls) == 4, timeout=30)
        for runner in live.runners:
            with pytest.raises(AssertionError, match="MailboxFull"):
                await runner.ask("call", **command)
        assert await live.notes(id) == [f"begins {gate}"]
        await live.open(gate)
        ended = await asyncio.gather(*calls, return_exceptions=True)
        assert await other.entity(Booth, id).say("room again") == "room again"
    assert sum(isinstance(each, MailboxFull) for each in ended) == 4
    assert await live.notes(id) == [f"begins {gate}", f"ends {gate}"] * 2


async def test_a_volatile_message_whose_runner_is_killed_is_not_handled_again(live: Live) -> None:
    id, gate = live.name(), live.name("gate")
    async with asyncio.timeout(100):
        call = asyncio.ensure_future(live.client.entity(Booth, id).occupy(gate))
        await live.noted(id, 1)
        await live.kill(await live.owner(live.address(Booth, id).shard))
        await live.restore()
        with pytest.raises(RequestFailed) as failed:
            await call
        assert await live.client.entity(Booth, id).say("after") == "after"
    assert failed.value.error.type == "RunnerLost"
    assert await live.notes(id) == [f"begins {gate}"]


async def test_a_volatile_message_waits_for_its_shard_to_move(live: Live) -> None:
    ids = live.names(2)

    async def talk(id: str, done: asyncio.Event) -> int:
        said = 0
        while not done.is_set():
            assert await live.client.entity(Booth, id).say(f"{said}") == f"{said}"
            said += 1
        return said

    done = asyncio.Event()
    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        talks = [group.create_task(talk(id, done)) for id in ids]
        newcomer = await live.greedy_runner()
        done.set()
    assert all(talk.result() for talk in talks)
    assert (await live.owner(live.address(Booth, ids[0]).shard)) is newcomer
