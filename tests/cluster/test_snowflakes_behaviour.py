"""Snowflakes: unique over all live processes, and growing in each whatever its clock does."""

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from engine.core.ids import MachineLease, SnowflakeGenerator
from tests.cluster.cast import Single
from tests.cluster.live import Live

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def machine(snowflake: int) -> int:
    return snowflake >> 12 & 1023


@pytest.mark.asyncio(loop_scope="session")
async def test_no_two_live_processes_share_a_machine_id_and_all_ids_are_unique(live: Live) -> None:
    """Runners, also those that were started in the place of killed ones, and clients."""
    await live.kill(live.runners[0])
    await live.restore()
    async with asyncio.timeout(50), live.another_client() as other:
        made = await asyncio.gather(
            *(runner.ask("snowflakes", count=20_000) for runner in live.runners)
        )
        for client in (live.client, other):
            id = live.name()
            await client.tell(client.entity(Single, id).echo, "")
            made.append(await live.requests(id))
    assert all(before < after for ids in made for before, after in pairwise(ids))
    machines = [{machine(id) for id in ids} for ids in made]
    assert [len(each) for each in machines] == [1] * len(made)
    assert len(set().union(*machines)) == len(made)


def test_a_million_are_unique_and_growing_across_a_clock_that_steps_back() -> None:
    """Made as fast as they can be, by a clock that runs for a while, then is set back by an hour;
    a second process's are different ones."""
    made: list[int] = []
    others: list[int] = []

    def clock() -> datetime:
        stepped_back = timedelta(hours=1) if len(made) >= 500_000 else timedelta(0)
        return NOON + timedelta(microseconds=5 * len(made)) - stepped_back

    until = NOON + timedelta(minutes=10)
    ids = SnowflakeGenerator(now=clock, lease=MachineLease(machine=7, until=until))
    other = SnowflakeGenerator(now=clock, lease=MachineLease(machine=8, until=until))
    for number in range(1_000_000):
        made.append(ids.next())
        if number % 10 == 0:
            others.append(other.next())
    assert all(before < after for before, after in pairwise(made))
    assert all(before < after for before, after in pairwise(others))
    assert not set(made) & set(others)
