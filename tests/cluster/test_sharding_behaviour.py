"""The sharding of any runner: who owns what, messages by name, replies to whoever asks."""

import asyncio
from datetime import timedelta
from functools import partial

import pytest

from engine import Entity, EnvelopeRequest, Snowflake
from engine.storage.postgres import PostgresStorage
from engine.storage.protocol import SaveRequest
from tests.chaos.cluster import Process
from tests.cluster.cast import Annexed, Single, Unbounded
from tests.cluster.characters import Fleeting
from tests.cluster.live import Live
from tests.eventually import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]


async def test_all_processes_place_an_entity_alike_and_one_has_its_shard(live: Live) -> None:
    targets: list[tuple[type[Entity], str]] = [(Single, id) for id in live.names(10)]
    targets += [(Unbounded, live.name("ünïcode/ ")), (Annexed, live.name())]
    async with asyncio.timeout(150):
        owners = await live.owners()
        for entity, id in targets:
            shard = live.address(entity, id).shard
            where = {"group": shard.group, "number": shard.number}
            for runner in live.runners:
                placed = await runner.ask("shard_of", type=entity.name, entity_id=id)
                assert placed == [shard.group, shard.number]
            owner = [owners[shard.number]] if shard.group == "default" else []
            await eventually(partial(had_by, live, owner, where))


async def had_by(live: Live, pids: list[int], where: dict[str, object]) -> bool:
    """Whether these runners say that they have the shard, and no others."""
    having = [each.pid for each in live.runners if await each.ask("has_shard", **where)]
    return having == pids


async def test_every_shard_is_had_by_just_one_runner_also_after_a_death(live: Live) -> None:
    async with asyncio.timeout(150):
        await live.kill(live.runners[0])
        await live.restore()

        async def each_once() -> bool:
            owned = [each for runner in live.runners for each in await runner.ask("shards")]
            assert sorted(number for _, number, _ in owned) == [*range(1, live.shards + 1)]
            return True

        await eventually(each_once)


async def test_a_message_by_name_is_as_one_by_class_from_every_runner(live: Live) -> None:
    id, key = live.name(), live.name("key")
    echo = {"type": "Single", "id_of": id, "tag": "echo", "arguments": {"value": "to you"}}
    once = {"type": "Single", "id_of": id, "tag": "note", "arguments": {"what": "once"}}
    async with asyncio.timeout(150):
        by_class = await live.client.entity(Single, id, key=key).note("once")
        for runner in live.runners:
            assert await runner.ask("send_by_name", **echo) == ["Success", '"to you"']
            told = await runner.ask("send_by_name", options={"key": key}, **once)
            assert told == ["Success", str(by_class)]
            none = await runner.ask("send_by_name", **echo | {"tag": "nothing", "arguments": {}})
            assert none[0] == "Defect"
    assert await live.notes(id) == ["once"]


async def test_options_on_a_handle_hold_together_whoever_uses_them(live: Live) -> None:
    """Told by every process at once, under one key and for one time: handled once, then."""
    id, key = live.name(), live.name("key")
    now = await live.database.fetchval("select clock_timestamp()")
    due = now + timedelta(seconds=1)
    told = {"entity": "Single", "entity_id": id, "method": "note", "args": ["due"], "key": key}
    async with asyncio.timeout(150), asyncio.TaskGroup() as group:
        handle = live.client.entity(Single, id, at=due, key=key)
        group.create_task(live.client.tell(handle.note, "due"))
        for runner in live.runners:
            group.create_task(runner.ask("call", tell=True, at=due.isoformat(), **told))
    await live.client.entity(Single, id, key=key).note("due")
    assert await live.notes(id) == ["due"]
    assert await live.database.fetchval("select at >= $2 from notes where who = $1", id, due)


async def test_a_reply_comes_to_whoever_asks_for_it_before_or_after_it_is_there(live: Live) -> None:
    id, gate = live.name(), live.name("gate")
    async with asyncio.timeout(150):
        await live.client.tell(live.client.entity(Single, id).wait_at, gate)
        (request_id,) = await live.requests(id)
        await live.noted(id, 1)
        async with asyncio.TaskGroup() as group:
            waiting = [
                group.create_task(runner.ask("exit_of", request_id=request_id))
                for runner in live.runners
                for _ in range(3)
            ]
            for runner in live.runners:
                assert await runner.ask("replies_for", request_id=request_id) == []
            await live.open(gate)
        (exit, *others) = [task.result() for task in waiting]
        assert exit[0] == "Success"
        assert all(other == exit for other in others)
        await live.kill(live.runners[0])
        await live.restore()
        for runner in live.runners:
            assert await runner.ask("exit_of", request_id=request_id) == exit
            assert await runner.ask("replies_for", request_id=request_id) == [exit]


async def test_polling_storage_delivers_what_nothing_else_told_of(live: Live) -> None:
    """Stored by somebody who rings no bell, for a runner that does not look by itself for long."""
    id = live.name()
    async with asyncio.timeout(150):
        slow = await live.greedy_runner(poll_interval=300, poll_interval_degraded=300)
        (request_id,) = await slow.ask("snowflakes", count=1)
        address = live.address(Single, id)
        assert (await live.owner(address.shard)).pid == slow.pid
        envelope = EnvelopeRequest(
            request_id=Snowflake(request_id), address=address, tag="note", payload=b'{"what":"it"}'
        )
        storage = PostgresStorage(live.settings.dsn, shards_per_group=live.shards)
        async with storage:
            await storage.ensure_groups(["default"])
            await storage.save([SaveRequest(envelope=envelope)])
        await slow.ask("poll_storage")
        assert await slow.ask("exit_of", request_id=request_id) == ["Success", str(slow.pid)]
    assert await live.notes_by_process(id) == [(slow.pid, "it")]


async def test_a_runner_counts_the_entities_it_has_in_memory(live: Live) -> None:
    """Those that are busy, on a runner that had none before, and none when they have been idle."""
    ids, gate = live.names(2), live.name("gate")
    async with asyncio.timeout(150), asyncio.TaskGroup() as group:
        newcomer = await live.greedy_runner()
        await eventually(lambda: active(newcomer, 0), timeout=30)
        for id in ids:
            assert (await live.owner(live.address(Fleeting, id).shard)).pid == newcomer.pid
            group.create_task(live.client.entity(Fleeting, id).wait_at(gate))
            await live.noted(id, 1)
        assert await newcomer.ask("active") == len(ids)
        await live.open(gate)
        await eventually(lambda: active(newcomer, 0), timeout=30)


async def active(runner: Process, number: int) -> bool:
    return bool(await runner.ask("active") == number)
