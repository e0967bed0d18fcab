"""Crons: each instant of a schedule is fired once, whatever becomes of the runners that keep it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest

from engine import FireInfo, FireOutcome, Overlap, Schedule, Success
from engine.core.ids import shard_of
from engine.core.reply import Interrupted
from tests.cli.terminal import do
from tests.cluster.cron_cases import enumerated
from tests.cluster.live import Live
from tests.cluster.newcomers import Report
from tests.eventually import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]
SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)
EVERY_SECOND, YEARLY = "* * * * * *", "0 0 1 1 *"
BERLIN = "Europe/Berlin"
RAN = Success(b"null")
REQUESTS = "select count(*) from engine.envelopes where entity_type = $1 and tag = 'run'"
A_DAY_BACK = """
    update engine.schedules set done_until = done_until - interval '1 day',
        next_at = done_until - interval '1 day' where name = $1 returning done_until
"""


@dataclass(slots=True, kw_only=True)
class Kept:
    """A cron of a test's own, which every runner serves."""

    live: Live
    kind: str
    name: str
    options: dict[str, object]

    @property
    def schedule(self) -> Schedule:
        return self.live.client.schedule(self.name)

    async def serve(self) -> None:
        """By every runner, also by those that came in the place of others."""
        await self.live.register(self.kind, self.name, **self.options)

        async def known() -> bool:
            return self.name in {info.name for info in await self.live.client.schedules()}

        await eventually(known, timeout=30)

    async def kill_owner(self) -> None:
        shard = shard_of("default", self.live.shards, "cron", self.name)
        await (await self.live.owner(shard)).kill()
        await self.live.restore()
        await self.serve()

    async def fires(self) -> list[FireInfo]:
        """Its instants and what became of them, oldest first."""
        return [*reversed(await self.schedule.fires(10_000))]

    async def instants(self) -> list[datetime]:
        return [fire.instant for fire in await self.fires()]

    async def fired(self, number: int) -> list[datetime]:
        """As soon as so many more instants have been dealt with."""
        before = len(await self.instants())

        async def more() -> list[datetime]:
            instants = await self.instants()
            return instants if len(instants) >= before + number else []

        return await eventually(more, timeout=40, every=0.1)

    async def ended(self, number: int = 1) -> list[FireInfo]:
        """As soon as there are so many instants at least, and all that was started has ended."""

        async def all_ended() -> list[FireInfo]:
            fires = await self.fires()
            left = [f for f in fires if f.exit is None and f.outcome is not FireOutcome.OVERLAPPED]
            assert len(fires) >= number, len(fires)
            assert not left, left[:3]
            return fires

        return await eventually(all_ended, timeout=50, every=0.1)

    async def outlast(self, command: str, *arguments: str) -> dict[str, object]:
        """A command on it that succeeds; the line it prints."""
        dsn = self.live.settings.dsn
        ended = await do("schedules", command, self.name, *arguments, "--json", dsn=dsn)
        assert (ended.code, ended.err) == (0, "")
        (line,) = ended.lines
        return dict(line)


async def kept(live: Live, kind: str, **options: object) -> Kept:
    name = live.name(kind)
    cron = Kept(live=live, kind=kind, name=name, options={"schedule": YEARLY, **options})
    await cron.serve()
    return cron


async def later(live: Live, when: datetime) -> None:
    """As soon as it is that late by the database's clock."""
    is_later = "select clock_timestamp() > $1"
    await eventually(lambda: live.database.fetchval(is_later, when), timeout=30, every=0.1)


@pytest.mark.parametrize("kind", ["Noting", "Reporting"])
async def test_each_instant_is_fired_once_while_owners_are_killed(live: Live, kind: str) -> None:
    """By the second, in a time zone; a method that runs, and a workflow that is started."""
    options = {"schedule": EVERY_SECOND, "timezone": BERLIN, "overlap": "allow"}
    async with asyncio.timeout(150):
        cron = await kept(live, kind, **options)
        await cron.fired(2)
        for _ in range(2):
            await cron.kill_owner()
            last = await live.database.fetchval("select clock_timestamp()")
            await later(live, last + SECOND)
            await cron.fired(1)
        await cron.schedule.pause()
        fires = await cron.ended()
        instants = [fire.instant for fire in fires]
        assert instants == enumerated(EVERY_SECOND, BERLIN, instants[0] - SECOND, instants[-1])
        assert instants[-1] >= last
        assert {fire.outcome for fire in fires} == {FireOutcome.STARTED}
        assert len({fire.request_id for fire in fires}) == len(fires)
        if kind == "Noting":
            noted = {datetime.fromisoformat(note) for note in await live.notes(cron.name)}
            assert noted == set(instants)
            assert await live.database.fetchval(REQUESTS, f"cron:{cron.name}") == len(instants)
        else:
            made = live.client.executions(Report, attributes={"cron": cron.name})
            assert sorted([info.id async for info in made]) == [
                f"{cron.name}/{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}" for at in instants
            ]


@pytest.mark.parametrize("overlap", [*Overlap])
async def test_what_runs_already_is_known_to_the_next_owner_too(
    live: Live, overlap: Overlap
) -> None:
    """The policies on overlapping runs, with the death of the owner between two instants."""
    async with asyncio.timeout(150):
        cron = await kept(live, "Held", overlap=overlap.value)
        first = (await cron.schedule.trigger()).instant
        await live.noted(cron.name, 1)
        await cron.kill_owner()
        await live.noted(cron.name, 2)
        asked = await cron.schedule.trigger()
        second = asked.instant
        outcomes = {Overlap.SKIP: FireOutcome.OVERLAPPED, Overlap.ALLOW: FireOutcome.STARTED}
        assert asked.outcome is outcomes.get(overlap)
        if overlap in {Overlap.CANCEL, Overlap.ALLOW}:
            await eventually(lambda: begun(live, cron, second), timeout=30)
        await live.open(cron.name)
        fires = await cron.ended(2)
        notes = [note.split() for note in await live.notes(cron.name)]
    exits = {
        Overlap.SKIP: [RAN, None],
        Overlap.BUFFER_ONE: [RAN, RAN],
        Overlap.ALLOW: [RAN, RAN],
        Overlap.CANCEL: [Interrupted(), RAN],
    }
    assert [(fire.instant, fire.exit) for fire in fires] == [
        *zip((first, second), exits[overlap], strict=True)
    ]
    ran = [datetime.fromisoformat(at) for _, at in notes]
    last = len(ran) - ran[::-1].index(first) - 1
    assert notes[last][0] == "ends"
    assert notes[-1][0] == "ends"
    if overlap is Overlap.ALLOW:
        assert ran.index(second) < last
    else:
        assert ran[last + 1 :] == [second] * ran.count(second)
        assert (second in ran) == (overlap is not Overlap.SKIP)


async def begun(live: Live, cron: Kept, instant: datetime) -> bool:
    notes = [note.split() for note in await live.notes(cron.name)]
    return instant in [datetime.fromisoformat(at) for _, at in notes]


async def test_a_cron_that_is_paused_fires_nothing_on_the_next_owner_until_it_is_resumed(
    live: Live,
) -> None:
    async with asyncio.timeout(150):
        cron = await kept(live, "Noting", schedule=EVERY_SECOND)
        await cron.fired(1)
        await cron.outlast("pause", "--reason", "a test")
        before = await cron.instants()
        await cron.kill_owner()
        paused_at = await live.database.fetchval("select clock_timestamp()")
        await later(live, paused_at + 3 * SECOND)
        assert await cron.instants() == before
        shown = await cron.outlast("show")
        assert (shown["state"], shown["reason"], shown["next_at"]) == ("paused", "a test", None)
        await cron.outlast("resume")
        instants = await cron.fired(2)
        await cron.schedule.pause()
    assert instants[: len(before)] == before
    assert instants[len(before)] > paused_at + 3 * SECOND


async def test_triggers_of_one_id_are_one_in_all_processes_and_over_a_death(live: Live) -> None:
    async with asyncio.timeout(150), live.another_client() as other:
        cron = await kept(live, "Noting", overlap="allow")
        elsewhere = other.schedule(cron.name)
        triggered = await asyncio.gather(
            *(each.trigger(id="once") for each in (cron.schedule, elsewhere) for _ in range(5)),
        )
        printed = await cron.outlast("trigger", "--id", "once")
        await cron.ended()
        await cron.kill_owner()
        again = await elsewhere.trigger(id="once")
        another = await elsewhere.trigger()
        fires = await cron.ended(2)
    assert {fire.instant for fire in triggered} == {again.instant}
    assert int(str(printed["request_id"])) == again.request_id
    assert [fire.instant for fire in fires] == [again.instant, another.instant]
    assert all(fire.manual and fire.exit == RAN for fire in fires)


@pytest.mark.parametrize("day", ["2026-01-01", "2026-03-29", "2025-10-26"])
async def test_a_day_is_made_up_for_in_order_while_owners_are_killed(live: Live, day: str) -> None:
    """A day of 24 hours, one of 23 and one of 25; one run after the other."""
    tens = "*/10 * * * *"
    begin = datetime.fromisoformat(f"{day}T00:00+01:00") - timedelta(hours=1)
    async with asyncio.timeout(150):
        cron = await kept(live, "Noting", schedule=tens, timezone=BERLIN, overlap="skip")
        expected = enumerated(tens, BERLIN, begin, begin + 26 * timedelta(hours=1))
        span = expected[0].isoformat(), expected[-1].isoformat()
        assert await cron.outlast("backfill", *span) == {
            "name": cron.name,
            "instants": len(expected),
        }
        for number in (10, 60):
            await live.noted(cron.name, number)
            await cron.kill_owner()
        fires = [fire for fire in await cron.ended(len(expected)) if fire.manual]
        notes = [datetime.fromisoformat(note) for note in await live.notes(cron.name)]
    assert [fire.instant for fire in fires] == expected
    assert {fire.outcome for fire in fires} == {FireOutcome.STARTED}
    assert {fire.exit and type(fire.exit) for fire in fires} == {Success}
    assert in_order(notes, expected)


def in_order(notes: Sequence[datetime], expected: Sequence[datetime]) -> bool:
    """At least once each, and none before the one ahead of it; some other instants may be due."""
    made_up = [note for note in notes if note <= expected[-1]]
    return made_up == sorted(made_up) and set(made_up) == set(expected)


async def test_after_an_outage_of_a_day_just_the_enumerated_instants_are_fired(live: Live) -> None:
    """The outage is one by the books; the next owner catches up, dies, and another goes on."""
    fives = "*/5 * * * *"
    async with asyncio.timeout(150):
        rules = {"catch_up": 2 * DAY.total_seconds(), "overlap": "allow"}
        cron = await kept(live, "Noting", schedule=fives, **rules)
        await live.kill(*live.runners)
        begin = await live.database.fetchval(A_DAY_BACK, cron.name)
        await live.restore()
        await cron.serve()
        await live.noted(cron.name, 10)
        await cron.kill_owner()
        fires = await cron.ended(288)
        noted = {datetime.fromisoformat(note) for note in await live.notes(cron.name)}
    instants = [fire.instant for fire in fires]
    assert instants == enumerated(fives, "UTC", begin, instants[-1])
    assert instants[-1] >= begin + DAY - 5 * 60 * SECOND
    assert {fire.outcome for fire in fires} == {FireOutcome.STARTED}
    assert len({fire.request_id for fire in fires}) == len(fires)
    assert noted == set(instants)
