"""Crons of real processes that are killed and told to leave, over a real server."""

import logging
import signal
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from typing import Any

import asyncpg
import pytest

from engine import Client, Cron, FireOutcome, Settings
from engine.cluster.timetable import Timetable
from engine.core.reply import Interrupted, Success
from tests.chaos.cluster import Cluster, Process, cluster
from tests.cluster.cast import TABLES
from tests.cluster.cron_app import EVERY_SECOND, VARIABLE, Alone, Held, Reporting, Ticking, Yearly
from tests.cluster.cron_cases import enumerated
from tests.cluster.live import SHORT, in_process
from tests.eventually import eventually

log = logging.getLogger(__name__)
pytestmark = pytest.mark.timeout(180)
SECOND = timedelta(seconds=1)
RAN = Success(b"null")

OWNER = """
    select r.pid from engine.schedules s
    join engine.shards h using (group_id, shard) join engine.runners r on r.id = h.runner_id
    where s.name = $1 and r.died_at is null
"""
REQUESTS = "select count(*) from engine.envelopes where entity_type = $1 and tag = 'run'"
LATENESS = (
    "select extract(epoch from at - what::timestamptz) from notes where who = $1 order by nth"
)


class Crons:
    """Runners with crons, and a client in this process."""

    def __init__(self, processes: Cluster, client: Client) -> None:
        self.processes = processes
        self.client = client

    @property
    def database(self) -> "asyncpg.Pool[Any]":
        return self.processes.database

    async def owner(self, cron: type[Timetable]) -> Process:
        """The process that keeps a cron."""

        async def found() -> Process | None:
            pid = await self.database.fetchval(OWNER, cron.name)
            return next((each for each in self.processes.runners if each.pid == pid), None)

        owner = await eventually(found, timeout=30)
        assert owner is not None
        return owner

    async def instants(self, cron: type[Timetable]) -> list[datetime]:
        """Those that have been dealt with, oldest first."""
        return [each.instant for each in reversed(await self.client.schedule(cron).fires(10_000))]

    async def fired(self, cron: type[Timetable], number: int) -> list[datetime]:
        """As soon as so many more instants have been dealt with."""
        before = len(await self.instants(cron))

        async def more() -> list[datetime]:
            instants = await self.instants(cron)
            return instants if len(instants) >= before + number else []

        return await eventually(more, timeout=60, every=0.1)

    async def caught_up(self, cron: type[Timetable]) -> None:
        """As soon as the latest instant is one of just now."""

        async def late() -> bool:
            return (await self.instants(cron))[-1] > await self.now() - 2 * SECOND

        await eventually(late, timeout=60)

    async def now(self) -> datetime:
        now = await self.database.fetchval("select clock_timestamp()")
        assert isinstance(now, datetime)
        return now

    async def notes(self, cron: type[Cron]) -> list[str]:
        rows = await self.database.fetch(
            "select what from notes where who = $1 order by nth", cron.name
        )
        return [row["what"] for row in rows]

    async def noted(self, cron: type[Cron], number: int) -> list[str]:
        async def enough() -> list[str]:
            notes = await self.notes(cron)
            assert len(notes) >= number, notes
            return notes

        return await eventually(enough, timeout=60)

    async def stop(self, *crons: type[Timetable]) -> None:
        """Pause them, and wait for the end of what runs."""
        for cron in crons:
            await self.client.schedule(cron).pause("the test is over")

        async def ended() -> bool:
            fires = [f for cron in crons for f in await self.client.schedule(cron).fires(10_000)]
            return all(f.exit is not None for f in fires if f.outcome is FireOutcome.STARTED)

        await eventually(ended, timeout=60, every=0.2)


@asynccontextmanager
async def crons(
    dsn: str, logs: Path, served: Iterable[type[Timetable]], **settings: object
) -> AsyncIterator[Crons]:
    names = ",".join(each.name for each in served)
    chosen = {name: value for name, value in SHORT.items() if name in Settings.model_fields}
    async with (
        cluster(
            dsn,
            logs,
            app="tests.cluster.cron_app",
            tables=TABLES,
            variables={VARIABLE: names},
            forked=True,
            **chosen | settings,
        ) as processes,
        Client(Settings(dsn=dsn, **in_process(chosen))) as client,
    ):
        yield Crons(processes, client)


@pytest.mark.parametrize("notifications", [True, False])
async def test_over_kills_and_an_outage_just_the_enumerated_instants_are_fired(
    dsn: str, tmp_path: Path, notifications: bool
) -> None:
    served = (Ticking, Alone, Reporting)
    async with crons(dsn, tmp_path, served, notifications=notifications) as made:
        await made.processes.start_runners(2)
        for cron in served:
            await made.fired(cron, 2)
            await (await made.owner(cron)).kill()
            await made.processes.start_runner()
        await made.fired(Ticking, 2)
        for runner in made.processes.runners:
            await runner.kill()
        outage = await made.now()
        await eventually(lambda: _later(made, outage + 4 * SECOND), timeout=30)
        await made.processes.start_runners(2)
        for cron in served:
            await made.caught_up(cron)
        await made.stop(*served)

        for cron in served:
            instants = await made.instants(cron)
            zone = cron.timezone
            assert instants == enumerated(EVERY_SECOND, zone, instants[0] - SECOND, instants[-1])
            assert instants[-1] > outage + 4 * SECOND
        ticks = await made.instants(Ticking)
        assert {datetime.fromisoformat(note) for note in await made.notes(Ticking)} == set(ticks)
        assert await made.database.fetchval(REQUESTS, "cron:Ticking") == len(ticks)
        assert await made.database.fetchval(REQUESTS, "Report") == len(
            await made.instants(Reporting)
        )
        fires = await made.client.schedule(Reporting).fires(10_000)
        assert {type(fire.exit) for fire in fires} == {Success}
        assert never_two_at_once(await made.notes(Alone))


async def _later(made: Crons, when: datetime) -> bool:
    return await made.now() > when


def never_two_at_once(notes: list[str]) -> bool:
    """Whether each run ended before another instant's began. One whose process was killed begins
    again."""
    running: str | None = None
    for note in notes:
        what, instant = note.split()
        if what == "begins" and running not in {None, instant}:
            return False
        running = instant if what == "begins" else None
    return True


async def test_two_runners_that_take_turns_leave_no_gap(dsn: str, tmp_path: Path) -> None:
    async with crons(dsn, tmp_path, (Ticking,)) as made:
        (leaving,) = await made.processes.start_runners(1)
        for _ in range(3):
            await made.fired(Ticking, 2)
            coming = await made.processes.start_runner()
            await made.processes.shared([leaving, coming])
            leaving.send(signal.SIGTERM)
            assert await leaving.process.wait() == 0
            leaving = coming
        await made.caught_up(Ticking)
        await made.stop(Ticking)
        instants = await made.instants(Ticking)
        notes = await made.notes(Ticking)

    assert instants == enumerated(EVERY_SECOND, "UTC", instants[0] - SECOND, instants[-1])
    assert [datetime.fromisoformat(note) for note in sorted(notes)] == [
        at.astimezone(UTC) for at in instants
    ]


async def test_instants_are_fired_at_once_and_never_early(dsn: str, tmp_path: Path) -> None:
    async with crons(dsn, tmp_path, (Ticking,)) as made:
        await made.processes.start_runners(1)
        await made.fired(Ticking, 12)
        rows = await made.database.fetch(LATENESS, "Ticking")

    late = [float(row[0]) for row in rows]
    log.info("numbers: late by %.0f ms at the median, %s", median(late) * 1000, late)
    assert min(late) > 0
    assert median(late) < 0.25


async def test_an_idle_cron_asks_nothing_of_the_database(dsn: str, tmp_path: Path) -> None:
    async with crons(dsn, tmp_path, (Yearly, Held)) as made:
        (runner,) = await made.processes.start_runners(1)

        async def registered() -> bool:
            return len(await made.client.schedules()) == 2

        await eventually(registered)
        _, about_schedules = await runner.ask("statements")
        begun = (await runner.ask("statements"))[0]

        async def has_polled() -> bool:
            return (await runner.ask("statements"))[0] >= begun + 15

        await eventually(has_polled, timeout=60)
        assert (await runner.ask("statements"))[1] == about_schedules


async def test_a_run_that_is_cancelled_ends_on_whichever_runner_has_it(
    dsn: str, tmp_path: Path
) -> None:
    async with crons(dsn, tmp_path, (Held, Yearly)) as made:
        await made.processes.start_runners(2)
        schedule = made.client.schedule(Held)
        await eventually(lambda: _known(made, Held))
        first = (await schedule.trigger()).instant.astimezone(UTC).isoformat()
        await made.noted(Held, 1)
        await (await made.owner(Held)).kill()
        await made.noted(Held, 2)
        second = (await schedule.trigger()).instant.astimezone(UTC).isoformat()
        assert await made.noted(Held, 4) == [
            f"begins {first}",
            f"begins {first}",
            f"ends {first}",
            f"begins {second}",
        ]
        await made.database.execute("insert into gates values ($1)", f"held {second}")
        await made.noted(Held, 5)

        async def exits() -> bool:
            found = [fire.exit for fire in await schedule.fires()]
            return found == [RAN, Interrupted()]

        assert await eventually(exits)


async def _known(made: Crons, cron: type[Timetable]) -> bool:
    return cron.name in {info.name for info in await made.client.schedules()}
