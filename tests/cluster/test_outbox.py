"""What a process sends: batches of a bounded size, and keys that somebody's transaction holds."""

import asyncio
from typing import Any

import asyncpg

from engine import Client, Entity, Workflow, rpc
from engine.core.clock import monotonic
from engine.testing import TestCluster

CONNECTIONS = """
    select count(*) from pg_stat_activity
    where application_name like 'outlast:%' and datname = current_database()
"""


class Whispers(Entity):
    @rpc(persisted=False)
    async def whisper(self, number: int) -> int:
        return number


class Echo(Workflow[str, int]):
    @classmethod
    def key(cls, request: str) -> str:
        return request[:20]

    async def execute(self, request: str) -> int:
        return len(request)


async def test_starts_of_any_total_size_get_through(where: dict[str, Any]) -> None:
    async with TestCluster(Echo(), **where) as cluster:
        starts = [
            cluster.client.execute(Echo, f"{number:>20}" + "x" * (6 << 20)) for number in range(8)
        ]
        assert await asyncio.gather(*starts) == [20 + (6 << 20)] * 8


async def test_held_keys_hold_up_no_other_start_and_cost_one_connection_together(
    dsn: str,
) -> None:
    async with TestCluster(Echo(), dsn=dsn) as cluster:
        holder, watcher = await asyncpg.connect(dsn), await asyncpg.connect(dsn)
        transaction = holder.transaction()
        await transaction.start()
        for number in range(40):
            await cluster.client.start(Echo, f"held-{number}", connection=holder)
        async with Client(cluster.settings) as client, asyncio.TaskGroup() as group:
            await client.start(Echo, "before")
            connections = await watcher.fetchval(CONNECTIONS)
            blocked = [group.create_task(client.start(Echo, f"held-{n}")) for n in range(40)]
            await asyncio.sleep(0.005)
            began = monotonic()
            await client.start(Echo, "among them")
            assert monotonic() - began < 2
            await asyncio.sleep(1)
            began = monotonic()
            for number in range(20):
                await client.start(Echo, f"after-{number}")
                again = group.create_task(client.start(Echo, f"held-{number}"))
                blocked.append(again)
            assert monotonic() - began < 2
            assert await watcher.fetchval(CONNECTIONS) <= connections + 3
            assert not any(each.done() for each in blocked)
            await transaction.commit()
            for start in blocked:
                assert await (await start).join() == len((await start).id)
        await holder.close()
        await watcher.close()


async def test_of_many_starts_the_first_are_stored_before_the_last_are_prepared(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Echo(), **where) as cluster:
        outbox = cluster.client._node.outbox
        admitted, at_first_answers = 0, list[int]()

        async def start(number: int) -> None:
            nonlocal admitted
            await outbox.room()
            admitted += 1
            await cluster.client.start(Echo, f"{number}")
            at_first_answers.append(admitted)

        await asyncio.gather(*(start(number) for number in range(3_000)))
        assert at_first_answers[0] < 2_000


async def test_who_takes_room_for_nothing_or_gives_up_waiting_keeps_nobody_from_his(
    where: dict[str, Any],
) -> None:
    async with TestCluster(Echo(), **where) as cluster:
        outbox = cluster.client._node.outbox

        async def start(number: int) -> None:
            if number < 500:  # enough to fill it
                await cluster.client.start(Echo, f"{number}")
            else:
                await outbox.room()

        tasks = [asyncio.create_task(start(number)) for number in range(3_000)]
        await asyncio.sleep(0)
        for task in tasks[600:1_200]:
            task.cancel()
        async with asyncio.timeout(30):
            ended = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(each is None for each in ended) == 2_400


async def test_who_waits_for_room_is_told_when_the_client_closes(where: dict[str, Any]) -> None:
    async with TestCluster(Echo(), **where) as cluster:
        outbox = cluster.client._node.outbox
        await outbox.next_id()
        starts = [asyncio.create_task(cluster.client.start(Echo, f"{n}")) for n in range(3_000)]
        await asyncio.sleep(0)
        await outbox.__aexit__(None, None, None)
        async with asyncio.timeout(30):
            ended = await asyncio.gather(*starts, return_exceptions=True)
        refused = [each for each in ended if isinstance(each, BaseException)]
        assert 0 < len(refused) < 3_000
        assert all("this client is closed" in str(each) for each in refused)


async def test_what_is_not_stored_does_not_wait_behind_many_starts(where: dict[str, Any]) -> None:
    async with TestCluster(Echo(), Whispers(), **where) as cluster:
        await cluster.client.entity(Whispers, "a").whisper(0)  # it is in memory
        starts = [asyncio.create_task(cluster.client.start(Echo, f"{n}")) for n in range(3_000)]
        await asyncio.sleep(0)
        assert await cluster.client.entity(Whispers, "a").whisper(1) == 1
        assert sum(start.done() for start in starts) < 2_500
        await asyncio.gather(*starts)
