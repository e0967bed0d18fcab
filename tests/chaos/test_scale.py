"""Very many messages from random senders, while runners and senders are killed.

Small unless ``pytest --scale=full`` asks for ten thousand entities with a hundred messages each.
"""

import asyncio
import logging
import random
from pathlib import Path

import asyncpg
import pytest

from engine.core.clock import monotonic
from tests.chaos.cluster import Cluster, Process, cluster
from tests.chaos.scale import (
    ACKNOWLEDGED,
    PROCESSES,
    SCALES,
    SENDERS,
    Scale,
    acknowledged,
    plan,
)
from tests.eventually import eventually

log = logging.getLogger(__name__)

RUNNERS = 2
QUICK = {"heartbeat_interval": 0.5, "time_to_live": 3}
SENDER_KILLS = 3
"""A process of senders dies after so many runners, each process once."""

TABLES = """
    create unlogged table sent (entity text not null, sender int not null, amount int not null,
                                known bool not null);
"""
WRONG = """
    select entity_id, b.book -> 'wrong' as wrong from engine.entity_states
    cross join lateral (select convert_from(payload, 'utf8')::jsonb as book) b
    where b.book -> 'wrong' <> '[]'
"""
UNEQUAL = """
    with kept as (
        select s.entity_id as entity, a.sender::int as sender,
            (a.seen ->> 'count')::bigint as count, (a.seen ->> 'total')::bigint as total
        from engine.entity_states s
        cross join lateral jsonb_each(convert_from(s.payload, 'utf8')::jsonb -> 'seen')
            as a (sender, seen)
    ),
    asked as (
        select entity, sender,
            count(*) filter (where known) as count,
            coalesce(sum(amount) filter (where known), 0) as total,
            count(*) filter (where not known) as unknown,
            coalesce(sum(amount) filter (where not known), 0) as unknown_total
        from sent group by entity, sender
    )
    select entity, sender, k.count, k.total, a.count as sent, a.total as sent_total, a.unknown
    from kept k full join asked a using (entity, sender)
    where (coalesce(k.count, 0), coalesce(k.total, 0)) not in (
        (a.count, a.total), (a.count + a.unknown, a.total + a.unknown_total)
    ) is not false
"""
"""Entities whose state is not the sum of what was acknowledged, with or without the one message of
a killed sender that nobody knows of."""
NOT_ONE_EXIT = """
    select e.request_id, array_agg(r.kind) as exits
    from engine.envelopes e left join engine.replies r using (request_id)
    group by e.request_id
    having array_agg(r.kind) <> '{1}'
"""
COUNTS = """
    select (select count(*) from engine.envelopes) as requests,
        (select count(*) from engine.replies) as exits,
        (select sum((a.seen ->> 'count')::bigint) from engine.entity_states s
         cross join lateral jsonb_each(convert_from(s.payload, 'utf8')::jsonb -> 'seen')
             as a (sender, seen)) as handled
"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scale" in metafunc.fixturenames:
        scale = SCALES[metafunc.config.getoption("scale")]
        limit = pytest.mark.timeout(2 * scale.limit)
        metafunc.parametrize("scale", [pytest.param(scale, id=scale.name, marks=limit)])


class Senders:
    """The processes of the senders. One that is killed is followed by another."""

    def __init__(
        self, chaos: Cluster, group: asyncio.TaskGroup, *, scale: Scale, seed: int, files: Path
    ) -> None:
        self.files = [files / f"acknowledged-{process}" for process in range(PROCESSES)]
        self._chaos = chaos
        self._group = group
        self._scale = scale
        self._seed = seed
        self._running: dict[int, tuple[Process, asyncio.Task[int]]] = {}

    async def start(self, process: int) -> None:
        client = await self._chaos.start_client()
        sending = client.ask(
            "send",
            within=self._scale.limit,
            scale=self._scale.name,
            seed=self._seed,
            process=process,
            file=str(self.files[process]),
        )
        self._running[process] = client, self._group.create_task(sending)

    async def replace(self, process: int) -> None:
        """Kill it, and let another go on."""
        killed, sending = self._running[process]
        sending.cancel()
        await killed.kill()
        await self.start(process)

    async def finish(self) -> None:
        for _, sending in self._running.values():
            assert await sending == SENDERS

    def acknowledged(self) -> int:
        """How many messages by now."""
        return sum(each.stat().st_size for each in self.files if each.exists()) // ACKNOWLEDGED.size


async def test_messages_of_random_senders_are_handled_in_order_and_once_while_processes_are_killed(
    dsn: str, tmp_path: Path, scale: Scale
) -> None:
    seed = random.randrange(1 << 32)
    async with cluster(dsn, tmp_path, app="tests.chaos.scale_app", tables=TABLES, **QUICK) as chaos:
        await chaos.start_runners(RUNNERS)
        began = monotonic()
        async with asyncio.TaskGroup() as group:
            senders = Senders(chaos, group, scale=scale, seed=seed, files=tmp_path)
            for process in range(PROCESSES):
                await senders.start(process)
            killed = await kill(chaos, senders, scale)
            await senders.finish()

        async def all_handled() -> bool:
            return not await chaos.database.fetchval("select count(*) from engine.inbox")

        await eventually(all_handled, timeout=scale.limit)
        seconds = monotonic() - began
        log.info("%d messages in %.1f s: %.0f/s", scale.total, seconds, scale.total / seconds)
        unknown = await note_what_was_sent(chaos, senders, scale, seed)
        assert unknown <= killed * SENDERS
        assert await chaos.database.fetch(WRONG) == []
        assert await chaos.database.fetch(UNEQUAL) == []
        assert await chaos.database.fetch(NOT_ONE_EXIT) == []
        counts = await chaos.database.fetchrow(COUNTS)
        assert counts is not None
        assert counts["requests"] == counts["exits"] == counts["handled"]
        assert scale.total - unknown <= counts["handled"] <= scale.total
        log.info("numbers: %s, of %d nobody knew", dict(counts), unknown)


async def kill(chaos: Cluster, senders: Senders, scale: Scale) -> int:
    """Kill runners, and each process of senders once if it comes to that, evenly over the work;
    how many processes of senders were killed."""
    replaced = 0
    for nth in range(1, scale.kills + 1):
        reached = scale.total * nth // (scale.kills + 1)
        await eventually(lambda n=reached: senders.acknowledged() >= n, timeout=scale.limit)
        victim = random.choice([runner for runner in chaos.runners if runner.owned])
        await victim.kill()
        successor = await chaos.start_runner()
        await eventually(lambda r=successor: r.owned, timeout=60)
        if nth % SENDER_KILLS == 0 and replaced < PROCESSES:
            await senders.replace(replaced)
            replaced += 1
        log.info("%d acknowledged, %d runners killed", senders.acknowledged(), nth)
    return replaced


async def note_what_was_sent(chaos: Cluster, senders: Senders, scale: Scale, seed: int) -> int:
    """Fill the table of what was sent; how many messages nobody knows of."""
    known = acknowledged(senders.files)
    rows = [
        (f"a{each.entity}", each.sender, each.amount, (each.sender, each.place) in known)
        for messages in plan(scale, seed)
        for each in messages
    ]
    connection: asyncpg.Connection[asyncpg.Record]
    async with chaos.database.acquire() as connection:
        await connection.copy_records_to_table("sent", records=rows)
    return len(rows) - len(known)
