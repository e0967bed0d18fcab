"""A first message that starts its execution: both are there, or neither."""

import asyncio
from datetime import timedelta

import asyncpg
import pytest

from engine import (
    AlreadyStarted,
    Client,
    ConfigurationError,
    NotFound,
    PayloadConflict,
    Settings,
    Status,
    UpdateRejected,
    Workflow,
    query,
    signal,
    update,
)
from engine.testing import TestCluster
from tests.workflow.conftest import World

SOON = timedelta(seconds=20)


class Chat(Workflow[str, list[str]]):
    seen: list[str]

    async def execute(self, request: str) -> list[str]:
        self.seen, self.open = [], True
        await self.wait_until(lambda: not self.open)
        return [request, *self.seen]

    @signal
    def say(self, text: str) -> None:
        self.seen.append(text)

    @signal
    def close(self) -> None:
        self.open = False

    @query
    def said(self) -> list[str]:
        return self.seen

    @update
    async def add(self, text: str) -> int:
        self.seen.append(text)
        return len(self.seen)

    @add.validator
    def check(self, text: str) -> None:
        if not text:
            raise ValueError("say something")


async def test_a_signal_starts_the_execution_once_and_then_joins_it(world: World) -> None:
    async with world.cluster(Chat()) as cluster:
        lobby = cluster.client.with_start(Chat, "lobby", key="c", attributes={"kind": "room"})
        for text in ("one", "two"):
            chat = await lobby.signal(Chat.say, text)
        assert (await chat.describe()).attributes == {"kind": "room"}
        assert await lobby.update(Chat.add, "three") == 3
        await chat.signal(Chat.close)
        assert await world.result(cluster, chat) == ["lobby", "one", "two", "three"]
        with pytest.raises(NotFound, match="has ended"):
            await lobby.signal(Chat.say, "late")
        with pytest.raises(NotFound, match="has ended"):
            await lobby.update(Chat.add, "late")


async def test_an_update_starts_the_execution_and_is_answered_once_for_a_key(world: World) -> None:
    async with world.cluster(Chat()) as cluster:
        client = cluster.client
        once = client.with_start(Chat, "lobby", key="c", message_key="m")
        answers = await asyncio.gather(*(once.update(Chat.add, "one") for _ in range(5)))
        assert answers == [1] * 5
        with pytest.raises(PayloadConflict, match="other arguments"):
            await once.update(Chat.add, "two")
        chat = client.execution(Chat, "c")
        assert await chat.query(Chat.said) == ["one"]
        with pytest.raises(UpdateRejected, match="say something"):
            await client.with_start(Chat, "hall", key="d").update(Chat.add, "")
        assert not (await client.execution(Chat, "d").describe()).status.finished


async def test_what_must_not_be_joined_is_refused_and_told_nothing(world: World) -> None:
    async with world.cluster(Chat()) as cluster:
        client = cluster.client
        chat = await client.with_start(Chat, "lobby", key="c").signal(Chat.say, "one")
        with pytest.raises(PayloadConflict, match="another request"):
            await client.with_start(Chat, "other", key="c").signal(Chat.say, "two")
        with pytest.raises(AlreadyStarted):
            await client.with_start(Chat, "lobby", key="c", on_conflict="fail").signal(
                Chat.say, "three"
            )
        new = client.with_start(Chat, "lobby", key="new", on_conflict="fail")
        assert await new.update(Chat.add, "one") == 1
        assert await chat.query(Chat.said) == ["one"]


async def test_a_start_that_is_put_off_is_told_before_it_begins() -> None:
    async with TestCluster(Chat()) as cluster:
        later = cluster.client.with_start(Chat, "lobby", key="c", delay=timedelta(hours=1))
        chat = await later.signal(Chat.say, "one")
        await cluster.advance(timedelta(minutes=59))
        assert (await chat.describe()).status is Status.SCHEDULED
        await cluster.advance(timedelta(minutes=2))
        assert await chat.query(Chat.said) == ["one"]


@pytest.mark.parametrize("steps", range(12))
async def test_a_caller_that_is_cancelled_anywhere_has_stored_both_or_neither(steps: int) -> None:
    async with TestCluster(Chat()) as cluster:
        client = cluster.client
        lobby = client.with_start(Chat, "lobby", key="c", message_key="m")
        first = asyncio.create_task(lobby.signal(Chat.say, "one"))
        for _ in range(steps):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        await cluster.settle()
        chat = client.execution(Chat, "c")
        try:
            stored = await chat.query(Chat.said)
        except NotFound:
            stored = []
            assert [each async for each in client.executions()] == []
        else:
            assert stored == ["one"]
        await lobby.signal(Chat.say, "one")
        await cluster.settle()
        assert await chat.query(Chat.said) == ["one"]


async def test_many_clients_at_once_start_one_execution_that_hears_each_of_them_once(
    dsn: str,
) -> None:
    async with TestCluster(Chat(), dsn=dsn) as cluster:
        settings = Settings(dsn=dsn, shards_per_group=8)
        async with Client(settings) as one, Client(settings) as two, Client(settings) as three:
            clients = [one, two, three]
            sent = [
                client.with_start(Chat, "lobby", key="c", message_key=f"{n}").signal(
                    Chat.say, f"{n}"
                )
                for n in range(20)
                for client in clients
            ]
            handles = await asyncio.gather(*sent)
        assert len({each.request_id for each in handles}) == 1
        chat = cluster.client.execution(Chat, "c")
        await chat.signal(Chat.close)
        request, *seen = await chat.join(SOON)
        assert request == "lobby"
        assert sorted(seen, key=int) == [f"{n}" for n in range(20)]


async def test_both_happen_with_the_commit_of_the_callers_transaction(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    async with TestCluster(Chat(), dsn=dsn, poll_interval=timedelta(minutes=5)) as cluster:
        client = cluster.client
        inside = client.with_start(Chat, "lobby", key="c", connection=connection)
        undone = connection.transaction()
        await undone.start()
        await inside.signal(Chat.say, "never")
        await undone.rollback()
        with pytest.raises(NotFound):
            await client.execution(Chat, "c").poll()
        with pytest.raises(ConfigurationError, match="answered after your transaction"):
            await inside.update(Chat.add, "never")
        async with connection.transaction():
            chat = await inside.signal(Chat.say, "one")
            await inside.signal(Chat.close)
        assert await chat.join(SOON) == ["lobby", "one"]
    await connection.close()


async def test_a_start_held_by_an_open_transaction_holds_up_itself_alone(dsn: str) -> None:
    connection = await asyncpg.connect(dsn)
    async with TestCluster(Chat(), dsn=dsn) as cluster:
        client = cluster.client
        held = connection.transaction()
        await held.start()
        await client.start(Chat, "lobby", key="c", connection=connection)
        waiting = asyncio.create_task(
            client.with_start(Chat, "lobby", key="c").signal(Chat.say, "one")
        )
        free = await client.with_start(Chat, "hall", key="d").signal(Chat.say, "two")
        assert await free.query(Chat.said) == ["two"]
        assert not waiting.done()
        await held.commit()
        chat = await asyncio.wait_for(waiting, 20)
        await chat.signal(Chat.close)
        assert await chat.join(SOON) == ["lobby", "one"]
    await connection.close()
