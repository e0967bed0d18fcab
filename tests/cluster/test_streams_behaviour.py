"""Streams: complete and in order, one window ahead, whoever dies and whoever goes away."""

import asyncio
import random
import signal

import pytest

from engine import RequestFailed
from tests.cluster.cast import Single, Unbounded
from tests.cluster.live import Live
from tests.eventually import eventually

pytestmark = pytest.mark.asyncio(loop_scope="session")

CHUNKS = """
    select coalesce(max(n), 0) from (
        select count(*) as n from engine.replies join engine.envelopes using (request_id)
        where kind = 0 and entity_id = $1 group by request_id
    ) chunks
"""
EXITS = """
    select count(*) from engine.replies join engine.envelopes using (request_id)
    where kind <> 0 and entity_id = $1
"""

LOSE = """
    with mine as (select request_id from engine.envelopes where entity_id = $1),
        lost as (delete from engine.replies where request_id in (table mine))
    update engine.acks set sequence = 0 where request_id in (table mine)
"""
"""Chunks and acknowledgements are as they were after the first one."""


async def test_a_stream_comes_complete_and_in_order_wherever_it_is_made(live: Live) -> None:
    async def read(id: str, number: int) -> None:
        got = [each async for each in live.client.entity(Single, id).count(number)]
        assert got == list(range(number))

    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        for number, id in enumerate(live.names(12)):
            group.create_task(read(id, number * 10))


async def test_elements_that_were_taken_are_gone_and_one_exit_is_there(live: Live) -> None:
    id = live.name()
    async with asyncio.timeout(50):
        got = [each async for each in live.client.entity(Single, id).count(200)]

    async def none_is_left() -> bool:
        return bool(await live.database.fetchval(CHUNKS, id) == 0)

    assert got == list(range(200))
    await eventually(none_is_left)
    assert await live.database.fetchval(EXITS, id) == 1


async def test_a_stream_is_one_window_ahead_of_a_slow_caller_and_no_more(live: Live) -> None:
    id, window = live.name(), live.settings.stream_window
    most = 0
    async with asyncio.timeout(50):
        async for number in live.client.entity(Single, id).count(window * 3):
            if number % 5 == 0:
                most = max(most, await live.database.fetchval(CHUNKS, id))
    assert 0 < most <= window


@pytest.mark.timeout(120)
@pytest.mark.parametrize("method", ["count", "count_on"])
async def test_streams_come_complete_though_the_runners_that_make_them_are_killed(
    live: Live, method: str
) -> None:
    async def read(id: str, number: int) -> None:
        expected = 0
        handle = live.client.entity(Single, id)
        async for each in getattr(handle, method)(number):
            assert each == expected
            expected += 1
            if each % 50 == 25:
                await asyncio.sleep(0.05)
        assert expected == number

    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        for id in live.names(4):
            group.create_task(read(id, 400))
        for _ in range(3):
            await asyncio.sleep(random.uniform(0.2, 0.5))
            await live.kill(random.choice(live.runners))
            await live.processes.start_runner()


@pytest.mark.timeout(120)
async def test_streams_move_with_their_shards_when_runners_join_and_leave(live: Live) -> None:
    async def read(id: str, number: int) -> list[int]:
        got: list[int] = []
        async for each in live.client.entity(Single, id).count(number):
            got.append(each)
            if each % 20 == 0:
                await asyncio.sleep(0.05)
        return got

    async with asyncio.timeout(100), asyncio.TaskGroup() as group:
        tasks = [group.create_task(read(id, 300)) for id in live.names(6)]
        await live.processes.start_runner()
        await live.settled(live.runners)
        leaver = live.runners[0]
        leaver.send(signal.SIGTERM)
        assert await leaver.process.wait() == 0
    assert [task.result() for task in tasks] == [list(range(300))] * 6


@pytest.mark.runners(1)
async def test_a_stream_goes_on_though_a_fail_over_lost_what_its_caller_has_taken(
    live: Live,
) -> None:
    id, number = live.name(), live.settings.stream_window * 5
    async with asyncio.timeout(50):
        chunks = aiter(live.client.entity(Single, id).count(number))
        got = [await anext(chunks) for _ in range(live.settings.stream_window)]
        [runner] = live.runners
        runner.send(signal.SIGTERM)
        assert await runner.process.wait() == 0
        waiting = asyncio.ensure_future(anext(chunks))
        while (await asyncio.wait([waiting], timeout=1))[0]:
            got.append(await waiting)
            waiting = asyncio.ensure_future(anext(chunks))
        await live.database.execute(LOSE, id)
        await live.processes.start_runner()
        got.append(await waiting)
        got += [each async for each in chunks]
    assert got == list(range(number))


async def test_a_caller_that_leaves_its_loop_ends_the_stream(live: Live) -> None:
    id = live.name()
    async with asyncio.timeout(50):
        async for number in live.client.entity(Unbounded, id, key="k").count(100_000):
            if number == 100:
                break
        assert (await live.noted(id, 2))[-1] == "ends"
        with pytest.raises(RequestFailed) as ended:
            [each async for each in live.client.entity(Unbounded, id, key="k").count(100_000)]
    assert ended.value.error.type == "Interrupted"


async def test_a_caller_elsewhere_goes_on_with_the_key_behind_what_was_taken(live: Live) -> None:
    id = live.name()
    async with asyncio.timeout(50):
        first = aiter(live.client.entity(Single, id, key="k").count(500))
        got = [await anext(first) for _ in range(100)]
        async with live.another_client() as other:
            got += [each async for each in other.entity(Single, id, key="k").count(500)]
    assert got[:100] == list(range(100))
    assert got[100:] == list(range(got[100], 500))
    assert got[100] <= 100
