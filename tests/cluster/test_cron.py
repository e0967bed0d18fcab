"""Crons, on a virtual clock: what fires when, whatever becomes of the runner meanwhile."""

import asyncio
import logging
import random
from contextlib import AsyncExitStack, suppress
from datetime import UTC, datetime, timedelta

import pytest

from engine import Cron, FireInfo, NotFound, Overlap, RequestFailed
from engine.core.reply import Failure, Interrupted
from engine.storage.memory_database import Fault
from engine.testing import TestCluster
from tests.cluster.cron_cases import enumerated
from tests.cluster.hourly import (
    HOUR,
    MINUTE,
    MISSED,
    NONE,
    OVERLAPPED,
    RAN,
    SECOND,
    START,
    STARTED,
    TOO_OLD,
    Allowing,
    Buffering,
    Cancelling,
    Hourly,
    Skipping,
    database_at,
    hours,
    outcomes,
    registered,
    sleep_through,
)
from tests.eventually import eventually

# --- the instants of a day ------------------------------------------------------------------------


async def test_it_runs_at_its_instants_and_is_told_them_in_utc() -> None:
    async with TestCluster(hourly := Hourly()) as cluster:
        await cluster.advance(3.5 * HOUR)

    assert hourly.ended == hours(1, 2, 3)
    assert all(at.utcoffset() == timedelta(0) for at in hourly.ended)


async def test_it_begins_with_its_first_registration_and_fires_nothing_of_the_past() -> None:
    half_past = START + HOUR / 2
    async with TestCluster(hourly := Hourly(), database=database_at(half_past)) as cluster:
        info = await registered(cluster, "Hourly")

        assert (info.done_until, info.next_at) == (half_past, START + HOUR)
        assert hourly.begun == []


class Often(Hourly):
    schedule = "*/2 * * * *"
    timezone = "Europe/Berlin"
    overlap = Overlap.ALLOW
    catch_up = timedelta(days=7)


@pytest.mark.parametrize(
    "begin",
    [
        datetime(2026, 1, 1, tzinfo=UTC),
        datetime(2026, 3, 28, 23, tzinfo=UTC),
        datetime(2026, 10, 24, 22, tzinfo=UTC),
    ],
    ids=["a day", "a day of 23 hours", "a day of 25 hours"],
)
async def test_over_a_day_with_deaths_and_an_outage_just_the_enumerated_instants_run(
    begin: datetime,
) -> None:
    often, database = Often(), database_at(begin)
    async with TestCluster(often, database=database) as cluster:
        await registered(cluster, "Often")
        for _ in range(30):
            await cluster.advance(random.randint(0, 40 * 60) * SECOND)
            if random.random() < 0.5:
                await cluster.crash()
            else:
                database.fail_next_flush(random.choice([Fault.BEFORE_COMMIT, Fault.AFTER_COMMIT]))
    await sleep_through(database, 2 * HOUR)
    async with TestCluster(often, database=database) as cluster:
        await cluster.advance(begin + 25 * HOUR - database.clock.now())
        now = database.clock.now()
        expected = enumerated("*/2 * * * *", "Europe/Berlin", begin, now)

        async def dealt_with() -> list[FireInfo]:
            fires = await cluster.client.schedule(Often).fires(2000)
            return fires if len(fires) >= len(expected) and all(f.exit for f in fires) else []

        fires = await eventually(dealt_with, timeout=20)

    assert set(often.ended) == set(expected)
    assert [fire.instant for fire in reversed(fires)] == expected
    assert {fire.outcome for fire in fires} == {STARTED}
    assert len({fire.request_id for fire in fires}) == len(expected)


@pytest.mark.parametrize(
    ("zone", "time", "noon", "expected"),
    [
        ("Europe/Berlin", "30 2 * * *", "2026-03-28T12:00Z", ["29 01:00", "30 00:30"]),
        ("Europe/Berlin", "30 2 * * *", "2026-10-24T12:00Z", ["25 00:30", "26 01:30"]),
        ("America/New_York", "30 2 * * *", "2026-03-07T12:00Z", ["08 07:00", "09 06:30"]),
        ("America/New_York", "30 1 * * *", "2026-10-31T12:00Z", ["01 05:30", "02 06:30"]),
    ],
)
async def test_a_nightly_run_comes_once_a_day_also_when_the_clocks_change(
    zone: str, time: str, noon: str, expected: list[str]
) -> None:
    class Nightly(Hourly):
        schedule = time
        timezone = zone

    database = database_at(datetime.fromisoformat(noon))
    async with TestCluster(nightly := Nightly(), database=database) as cluster:
        await cluster.advance(48 * HOUR)

    assert [f"{at:%d %H:%M}" for at in nightly.ended] == expected


async def test_a_schedule_with_seconds_fires_by_the_second() -> None:
    class Ticking(Hourly):
        schedule = "*/10 * * * * *"

    async with TestCluster(ticking := Ticking()) as cluster:
        await cluster.advance(MINUTE)

    assert ticking.ended == [START + each * 10 * SECOND for each in range(1, 7)]


# --- overlaps -------------------------------------------------------------------------------------


async def test_skip_leaves_out_instants_while_a_run_goes_on() -> None:
    async with TestCluster(cron := Skipping()) as cluster:
        cron.gate.clear()
        await cluster.advance(3 * HOUR)
        cron.gate.set()
        await cluster.advance(HOUR)

        assert cron.ended == hours(1, 4)
        assert await outcomes(cluster, Skipping) == [
            (1, STARTED),
            (2, OVERLAPPED),
            (3, OVERLAPPED),
            (4, STARTED),
        ]


async def test_buffer_one_runs_one_instant_as_soon_as_the_run_has_ended() -> None:
    async with TestCluster(cron := Buffering()) as cluster:
        cron.gate.clear()
        await cluster.advance(3.5 * HOUR)
        info = await cluster.client.schedule(Buffering).describe()
        assert (info.buffered, len(info.running)) == (START + 2 * HOUR, 1)
        cron.gate.set()
        await eventually(lambda: cron.ended == hours(1, 2))
        await cluster.advance(HOUR)

        assert cron.ended == hours(1, 2, 4)
        assert (3, OVERLAPPED) in await outcomes(cluster, Buffering)


async def test_allow_runs_instants_beside_each_other() -> None:
    async with TestCluster(cron := Allowing()) as cluster:
        cron.gate.clear()
        await cluster.advance(3 * HOUR)

        assert (cron.begun, cron.ended) == (hours(1, 2, 3), [])
        cron.gate.set()


async def test_cancel_interrupts_the_run_and_begins_when_that_has_ended() -> None:
    class Tidy(Cancelling):
        async def run(self, at: datetime) -> None:
            try:
                await super().run(at)
            finally:
                tidied.append(at)

    tidied: list[datetime] = []
    async with TestCluster(cron := Tidy()) as cluster:
        cron.gate.clear()
        await cluster.advance(2 * HOUR)
        await eventually(lambda: cron.begun == hours(1, 2))
        assert tidied == hours(1)
        cron.gate.set()
        await eventually(lambda: cron.ended == hours(2))
        fires = await cluster.client.schedule(Tidy).fires()

    assert [(f.outcome, f.exit) for f in reversed(fires)] == [
        (STARTED, Interrupted()),
        (STARTED, RAN),
    ]


@pytest.mark.parametrize("kind", [Skipping, Buffering, Cancelling])
async def test_the_next_owner_knows_what_runs(kind: type[Hourly]) -> None:
    async with TestCluster(cron := kind()) as cluster:
        cron.gate.clear()
        await cluster.advance(HOUR)
        await cluster.crash()
        await eventually(lambda: cron.begun == hours(1, 1))
        await cluster.advance(HOUR)
        if kind is Cancelling:
            await eventually(lambda: cron.begun == hours(1, 1, 2))
        else:
            assert cron.begun == hours(1, 1)
        cron.gate.set()
        left = {Skipping: hours(1), Buffering: hours(1, 2), Cancelling: hours(2)}[kind]
        await eventually(lambda: cron.ended == left)


async def test_what_is_buffered_survives_its_owner() -> None:
    async with TestCluster(cron := Buffering()) as cluster:
        cron.gate.clear()
        await cluster.advance(2 * HOUR)
        info = await cluster.client.schedule(Buffering).describe()
        assert info.buffered == START + 2 * HOUR
        await cluster.crash()
        cron.gate.set()
        await eventually(lambda: cron.ended == hours(1, 2))


# --- late instants --------------------------------------------------------------------------------


async def test_instants_of_an_outage_run_late_within_the_catch_up_window_and_not_after_it() -> None:
    class Patient(Allowing):
        catch_up = 2.5 * HOUR

    cron, database = Patient(), database_at()
    async with TestCluster(cron, database=database) as cluster:
        await cluster.advance(HOUR)
    await sleep_through(database, 4 * HOUR)
    async with TestCluster(cron, database=database) as cluster:
        await eventually(lambda: set(cron.ended) == set(hours(1, 3, 4, 5)))

        async def noted() -> bool:  # which comes after the start: a run may end before
            assert await outcomes(cluster, Patient) == [
                (1, STARTED),
                (2, MISSED),
                (3, STARTED),
                (4, STARTED),
                (5, STARTED),
            ]
            return True

        await eventually(noted)


async def test_a_run_that_could_only_begin_too_late_is_left_out() -> None:
    class Punctual(Buffering):
        skip_if_older_than = HOUR / 2

    async with TestCluster(cron := Punctual()) as cluster:
        cron.gate.clear()
        await cluster.advance(2.75 * HOUR)
        cron.gate.set()
        await cluster.advance(HOUR)

        assert cron.ended == hours(1, 3)
        assert (2, TOO_OLD) in await outcomes(cluster, Punctual)


@pytest.mark.parametrize("dies", [True, False])
async def test_a_run_that_has_begun_runs_again_however_late_its_next_owner_comes(
    dies: bool,
) -> None:
    class Punctual(Skipping):
        skip_if_older_than = MINUTE

    cron, database = Punctual(), database_at()
    cron.gate.clear()
    async with TestCluster(cron, database=database, grace_period=NONE) as cluster:
        await cluster.advance(1.25 * HOUR)
        if dies:
            await cluster.crash()
    cron.gate.set()
    async with TestCluster(cron, database=database) as cluster:
        await eventually(lambda: cron.ended == hours(1))
        (fire,) = await cluster.client.schedule(Punctual).fires()

    assert (fire.outcome, fire.exit) == (STARTED, RAN)


async def test_without_a_catch_up_window_what_comes_while_it_is_kept_runs(dsn: str) -> None:
    class Prompt(Hourly):
        schedule = "* * * * * *"
        catch_up = NONE

    async with TestCluster(cron := Prompt(), dsn=dsn) as cluster:
        await eventually(lambda: len(cron.begun) >= 2, timeout=20)
        fires = await cluster.client.schedule(Prompt).fires()

    assert {fire.outcome for fire in fires} == {STARTED}


# --- definitions that change ----------------------------------------------------------------------


async def test_another_schedule_holds_once_it_is_registered_and_the_former_until_then() -> None:
    class Half(Allowing):
        name = "Allowing"
        schedule = "30 * * * *"

    before, after, database = Allowing(), Half(), database_at()
    async with TestCluster(before, database=database) as cluster:
        await cluster.advance(1.25 * HOUR)
    await sleep_through(database, HOUR)
    async with TestCluster(after, database=database) as cluster:
        await eventually(lambda: after.ended == hours(2))
        await cluster.advance(2 * HOUR)
        (info,) = await cluster.client.schedules()

    assert before.ended == hours(1)
    assert after.ended == hours(2, 2.5, 3.5)
    assert (info.name, info.schedule, info.next_at) == ("Allowing", "30 * * * *", hours(4.5)[0])


async def test_other_windows_are_seen_as_soon_as_they_are_registered() -> None:
    class Hasty(Allowing):
        name = "Allowing"
        catch_up = MINUTE

    database = database_at()
    async with TestCluster(Allowing(), database=database) as cluster:
        await registered(cluster, "Allowing")
    async with TestCluster(Hasty(), database=database) as cluster:

        async def changed() -> bool:
            return (await cluster.client.schedule("Allowing").describe()).catch_up == MINUTE

        assert await eventually(changed)


# --- what people ask for --------------------------------------------------------------------------


async def test_paused_it_fires_nothing_and_what_came_meanwhile_is_left_out() -> None:
    async with TestCluster(hourly := Hourly()) as cluster:
        schedule = cluster.client.schedule(Hourly)
        await cluster.advance(HOUR)
        await schedule.pause("the printer is on fire")
        await cluster.advance(2 * HOUR)
        paused = await schedule.describe()
        await cluster.crash()
        await cluster.advance(HOUR)
        await schedule.resume()
        await cluster.advance(HOUR)
        resumed = await schedule.describe()

        assert hourly.ended == hours(1, 5)
        assert (paused.paused, paused.reason, paused.next_at) == (
            True,
            "the printer is on fire",
            None,
        )
        assert (resumed.paused, resumed.reason, resumed.next_at) == (False, "", START + 6 * HOUR)
        assert await outcomes(cluster, Hourly) == [(1, STARTED), (5, STARTED)]


@pytest.mark.parametrize("kind", [Buffering, Cancelling])
async def test_paused_it_does_not_begin_what_waits_but_for_what_was_asked_for(
    kind: type[Hourly],
) -> None:
    class Slow(kind):
        async def run(self, at: datetime) -> None:
            self.begun.append(at)
            while not self.gate.is_set():
                with suppress(asyncio.CancelledError):
                    await self.gate.wait()
            self.ended.append(at)

    async with TestCluster(cron := Slow()) as cluster:
        schedule = cluster.client.schedule(Slow)
        cron.gate.clear()
        await cluster.advance(2 * HOUR)
        assert (await schedule.describe()).buffered == hours(2)[0]
        await schedule.pause()
        fire = await schedule.trigger()
        cron.gate.set()
        await eventually(lambda: cron.ended == [*hours(1), fire.instant])
        await schedule.resume()
        await cluster.settle()

        assert cron.begun == [*hours(1), fire.instant]
        assert (2, OVERLAPPED) in await outcomes(cluster, Slow)


async def test_what_is_paused_while_nobody_keeps_it_does_not_catch_up() -> None:
    hourly, database = Hourly(), database_at()
    async with TestCluster(hourly, database=database) as cluster:
        await cluster.advance(HOUR)
    async with TestCluster(Skipping(), database=database) as cluster:
        await cluster.advance(3 * HOUR)
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:
            group.create_task(cluster.client.schedule("Hourly").pause())
            await cluster.settle()
            cluster.runner.register(hourly)
        await cluster.advance(HOUR)

    assert hourly.ended == hours(1)


async def test_resuming_what_is_not_paused_changes_nothing() -> None:
    hourly, database = Hourly(), database_at()
    async with TestCluster(hourly, database=database) as cluster:
        await cluster.advance(HOUR)
        await cluster.client.schedule(Hourly).resume()
        await cluster.advance(HOUR)

    assert hourly.ended == hours(1, 2)


async def test_a_trigger_runs_it_now_also_while_it_is_paused() -> None:
    async with TestCluster(hourly := Hourly()) as cluster:
        schedule = cluster.client.schedule(Hourly)
        await schedule.pause()
        fire = await schedule.trigger()
        await eventually(lambda: hourly.ended == [fire.instant])

        (stored,) = await schedule.fires()
        assert (fire.outcome, stored.manual, stored.exit) == (STARTED, True, RAN)
        assert fire.instant - START < SECOND


async def test_two_triggers_are_two_runs_and_two_with_one_id_are_one() -> None:
    async with TestCluster(hourly := Hourly()) as cluster:
        schedule = cluster.client.schedule(Hourly)
        first = await schedule.trigger(id="a")
        again = await cluster.client.schedule("Hourly").trigger(id="a")
        await schedule.trigger(id="b")
        await eventually(lambda: len(hourly.ended) == 2)
        await schedule.trigger()
        await eventually(lambda: len(hourly.ended) == 3)

        assert again == first
        assert len(await schedule.fires()) == 3


async def test_triggers_of_one_millisecond_from_several_processes_are_as_many_runs() -> None:
    async with TestCluster(cron := Allowing()) as cluster, AsyncExitStack() as stack:
        others = [
            await stack.enter_async_context(
                TestCluster(Skipping(), database=cluster.database, groups=[f"group-{number}"])
            )
            for number in range(3)
        ]
        await cluster.advance(SECOND)
        schedules = [each.client.schedule(Allowing) for each in (cluster, *others)]
        fires = await asyncio.gather(*(schedule.trigger() for schedule in schedules * 2))
        await eventually(lambda: len(cron.ended) == 8)

    assert set(cron.ended) == {fire.instant for fire in fires}
    assert len({fire.request_id for fire in fires}) == 8


async def test_a_trigger_says_what_the_overlap_policy_made_of_it() -> None:
    skipping, buffering = Skipping(), Buffering()
    async with TestCluster(skipping, buffering) as cluster:
        skipping.gate.clear()
        buffering.gate.clear()
        await cluster.advance(HOUR)
        left_out = await cluster.client.schedule(Skipping).trigger()
        waits = await cluster.client.schedule(Buffering).trigger()
        assert (left_out.outcome, left_out.request_id) == (OVERLAPPED, None)
        assert (waits.outcome, waits.request_id) == (None, None)
        skipping.gate.set()
        buffering.gate.set()
        await eventually(lambda: buffering.ended == [*hours(1), waits.instant])

        latest, *_ = await cluster.client.schedule(Buffering).fires()
        assert (latest.instant, latest.outcome, latest.manual) == (waits.instant, STARTED, True)


async def test_a_trigger_that_is_delivered_again_runs_once() -> None:
    """Its owner is lost after the run's request was stored, and before the trigger's answer."""
    database = database_at()
    async with TestCluster(hourly := Hourly(), database=database) as cluster:
        schedule = cluster.client.schedule(Hourly)
        await registered(cluster, "Hourly")
        database.fail_next_flush(Fault.AFTER_COMMIT)
        fire = await schedule.trigger()
        await eventually(lambda: bool(hourly.ended))
        await cluster.advance(HOUR)

        assert hourly.ended.count(fire.instant) == 1
        assert fire.outcome is STARTED
        assert len(await schedule.fires()) == 2


async def test_a_backfill_makes_up_for_instants_that_were_never_started() -> None:
    hourly, database = Hourly(), database_at()
    async with TestCluster(hourly, database=database) as cluster:
        schedule = cluster.client.schedule(Hourly)
        await cluster.advance(HOUR)
        await schedule.pause()
        await cluster.advance(4 * HOUR)
        await schedule.resume()
        await cluster.advance(HOUR)
        assert hourly.ended == hours(1, 6)

        count = await schedule.backfill(START + HOUR, START + 4 * HOUR)
        await eventually(lambda: hourly.ended == hours(1, 6, 2, 3, 4))
        info = await schedule.describe()

        assert (count, info.backfill) == (4, [])
        fires = {(f.instant - START) / HOUR: f.manual for f in await schedule.fires()}
        assert fires == {1: False, 2: True, 3: True, 4: True, 6: False}


async def test_a_backfill_starts_also_what_was_left_out_before() -> None:
    async with TestCluster(cron := Skipping()) as cluster:
        cron.gate.clear()
        await cluster.advance(3 * HOUR)
        cron.gate.set()
        await eventually(lambda: cron.ended == hours(1))
        await cluster.client.schedule(Skipping).backfill(START + HOUR, START + 3 * HOUR)
        await eventually(lambda: cron.ended == hours(1, 2, 3))

        async def noted() -> bool:
            assert await outcomes(cluster, Skipping) == [(1, STARTED), (2, STARTED), (3, STARTED)]
            return True

        await eventually(noted)


async def test_a_backfill_runs_one_after_the_other_and_survives_its_owner() -> None:
    async with TestCluster(cron := Skipping()) as cluster:
        schedule = cluster.client.schedule(Skipping)
        await cluster.advance(5 * HOUR)
        await schedule.pause()
        await cluster.advance(5 * HOUR)
        cron.gate.clear()
        assert await schedule.backfill(START + 5.5 * HOUR, START + 9 * HOUR) == 4
        await eventually(lambda: cron.begun[5:] == hours(6))
        assert (await schedule.describe()).backfill != []
        await cluster.crash()
        await eventually(lambda: cron.begun[5:] == hours(6, 6))
        cron.gate.set()
        await eventually(lambda: cron.ended == hours(1, 2, 3, 4, 5, 6, 7, 8, 9))


async def test_a_backfill_ends_now_and_one_without_instants_is_none() -> None:
    async with TestCluster(hourly := Hourly()) as cluster:
        schedule = cluster.client.schedule(Hourly)
        await cluster.advance(1.5 * HOUR)

        assert await schedule.backfill(START + 2 * HOUR, START + 9 * HOUR) == 0
        assert await schedule.backfill(START + HOUR, START + 9 * HOUR) == 1
        await cluster.advance(HOUR)
        assert hourly.ended == hours(1, 2)


async def test_a_backfill_of_far_too_many_instants_is_refused() -> None:
    async with TestCluster(Hourly()) as cluster:
        with pytest.raises(RequestFailed, match="ask for a shorter time"):
            await cluster.client.schedule(Hourly).backfill(START - 20_000 * HOUR, START)


async def test_a_cron_that_nobody_has_registered_is_not_found() -> None:
    async with TestCluster(Hourly()) as cluster:
        with pytest.raises(NotFound, match="no runner has registered a cron named 'Yearly'"):
            await cluster.client.schedule("Yearly").pause()


# --- runs -----------------------------------------------------------------------------------------


async def test_a_run_that_fails_is_told_of_and_the_next_instant_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Failing(Cron):
        schedule = "0 * * * *"

        async def run(self, at: datetime) -> None:
            seen.append(at)
            raise LookupError("no paper")

    seen: list[datetime] = []
    async with TestCluster(Failing()) as cluster:
        await cluster.advance(2 * HOUR)
        latest, _ = await cluster.client.schedule(Failing).fires()

    assert seen == hours(1, 2)
    assert isinstance(latest.exit, Failure)
    assert latest.exit.error.message == "no paper"
    assert [r.message for r in caplog.records if r.levelno == logging.ERROR] == (
        ["a cron's run failed"] * 2
    )


async def test_a_run_whose_owner_is_lost_runs_again_on_the_next_one() -> None:
    async with TestCluster(hourly := Hourly()) as cluster:
        hourly.gate.clear()
        await cluster.advance(HOUR)
        await cluster.crash()
        hourly.gate.set()
        await eventually(lambda: hourly.ended == hours(1))

    assert hourly.begun == hours(1, 1)


async def test_a_cron_registered_late_begins_then() -> None:
    async with TestCluster(Skipping()) as cluster:
        await cluster.advance(1.5 * HOUR)
        cluster.runner.register(late := Allowing())
        await cluster.advance(HOUR)

    assert late.ended == hours(2)


@pytest.mark.parametrize("fault", [Fault.BEFORE_COMMIT, Fault.AFTER_COMMIT, Fault.LOCKED])
@pytest.mark.parametrize("flush", range(4))
async def test_whichever_write_of_an_instant_is_lost_it_is_fired_once(
    flush: int, fault: Fault
) -> None:
    database = database_at()
    async with TestCluster(hourly := Hourly(), database=database) as cluster:
        schedule = cluster.client.schedule(Hourly)
        await registered(cluster, "Hourly")
        for _ in range(flush):
            database.fail_next_flush(Fault.LOCKED)
        database.fail_next_flush(fault)
        await cluster.advance(HOUR)
        await eventually(lambda: hours(1)[0] in hourly.ended)

        async def noted() -> bool:
            ended = [fire.exit is not None for fire in await schedule.fires()]
            return ended == [True] and (await schedule.describe()).next_at == hours(2)[0]

        assert await eventually(noted)
        (fire,) = await schedule.fires()
        assert (fire.instant, fire.outcome) == (hours(1)[0], STARTED)
