"""Schedules as ``storage.protocol`` has them, asked of both storages: where each stands, and what
became of its instants."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from engine.core.ids import ShardId
from engine.storage.protocol import BadBatch, Commit, LaneSession
from engine.storage.schedules import Fire, FireOutcome, ScheduleRow
from tests.storage.world import ONE, TWO, Process, World, message, next_id, save_one, step, sweep_of

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def schedule(name: str = "nightly", *, shard: ShardId = ONE) -> ScheduleRow:
    return ScheduleRow(
        name=name,
        shard=shard,
        schedule="0 3 * * *",
        timezone="Europe/Zurich",
        settings=json.dumps({"overlap": "skip", "catch_up": 60}).encode(),
        done_until=NOON,
    )


def fire(instant: datetime = NOON, outcome: FireOutcome = FireOutcome.STARTED) -> Fire:
    return Fire(schedule="nightly", instant=instant, outcome=outcome, at=instant)


async def write(lane: LaneSession, *rows: ScheduleRow) -> None:
    await lane.flush([Commit(shard=ONE, schedules=list(rows))])


async def note(lane: LaneSession, *fires: Fire) -> None:
    await lane.flush([Commit(shard=ONE, fires=list(fires))])


async def only(process: Process) -> ScheduleRow:
    """The one schedule there is, with its settings in the form they were written in."""
    (row,) = await process.storage.schedules()
    return replace(row, settings=json.dumps(json.loads(row.settings)).encode())


# --- schedules ------------------------------------------------------------------------------------


async def test_a_schedule_is_stored_as_it_stands(process: Process, lane: LaneSession) -> None:
    row = replace(
        schedule("nächtlich"),
        settings=json.dumps({"overlap": "buffer_one", "windows": [1, None]}).encode(),
        paused=True,
        next_at=NOON + HOUR,
        buffered=NOON - HOUR,
        running=(next_id(), next_id()),
    )

    await write(lane, row)

    stored = await only(process)
    assert json.loads(stored.settings) == json.loads(row.settings)
    assert replace(stored, settings=row.settings) == replace(row, runner=process.runner)


async def test_a_schedule_that_has_little_to_say_is_stored_as_it_stands(
    process: Process, lane: LaneSession
) -> None:
    await write(lane, schedule())

    row = await only(process)
    assert (row.paused, row.next_at, row.buffered, row.running) == (False, None, None, ())


async def test_a_schedule_is_replaced_by_what_is_written_later(
    process: Process, lane: LaneSession
) -> None:
    busy = replace(schedule(), paused=True, next_at=NOON, buffered=NOON, running=(next_id(),))
    await write(lane, busy)
    later = replace(
        schedule(), schedule="*/5 * * * * *", timezone="UTC", done_until=NOON + 2 * HOUR
    )

    await write(lane, later)

    stored = await only(process)
    assert replace(stored, settings=later.settings) == replace(later, runner=process.runner)


async def test_of_several_writes_of_a_schedule_in_one_flush_the_last_is_kept(
    process: Process, lane: LaneSession
) -> None:
    first, second, third = [replace(schedule(), done_until=NOON + n * HOUR) for n in (3, 2, 1)]

    await lane.flush(
        [
            Commit(shard=ONE, schedules=[first, second]),
            Commit(shard=ONE, schedules=[third]),
        ]
    )

    assert (await only(process)).done_until == NOON + HOUR


async def test_schedules_come_by_name(process: Process, lane: LaneSession) -> None:
    await write(lane, schedule("nightly"), schedule("hourly"), schedule("weekly"))

    async def found(names: list[str] | None = None) -> list[str]:
        return [row.name for row in await process.storage.schedules(names)]

    assert await found() == ["hourly", "nightly", "weekly"]
    assert await found(["weekly", "hourly", "never", "weekly"]) == ["hourly", "weekly"]
    assert await found(["never"]) == []
    assert await found([]) == []


async def test_a_schedule_is_seen_with_the_owner_of_its_shard(
    world: World, process: Process, lane: LaneSession
) -> None:
    await write(lane, schedule("here"), schedule("there", shard=TWO))
    assert [row.runner for row in await process.storage.schedules()] == [process.runner, None]

    await lane.release([ONE])
    other, second = await world.runner_with_lane()
    await second.acquire([ONE, TWO])

    rows = await process.storage.schedules()
    assert [(row.shard, row.runner) for row in rows] == [(ONE, other.runner), (TWO, other.runner)]


# --- instants -------------------------------------------------------------------------------------


async def test_what_became_of_an_instant_is_stored_as_it_was(
    process: Process, lane: LaneSession
) -> None:
    started = replace(fire(), request_id=next_id(), manual=True, at=NOON + timedelta(seconds=2))

    await note(lane, started)

    assert list(await process.storage.fires("nightly", limit=10)) == [started]


async def test_every_outcome_is_stored(process: Process, lane: LaneSession) -> None:
    fires = [fire(NOON + n * HOUR, outcome) for n, outcome in enumerate(FireOutcome)]

    await note(lane, *fires)

    assert list(await process.storage.fires("nightly", limit=10)) == fires[::-1]


async def test_the_latest_instants_come_first(process: Process, lane: LaneSession) -> None:
    fires = [fire(NOON + n * HOUR) for n in (2, 0, 3, 1)]
    await note(lane, *fires, replace(fire(NOON + 9 * HOUR), schedule="other"))

    latest = await process.storage.fires("nightly", limit=3)

    assert [each.instant for each in latest] == [NOON + n * HOUR for n in (3, 2, 1)]
    assert list(await process.storage.fires("never", limit=3)) == []


async def test_the_first_that_became_of_an_instant_stays(
    process: Process, lane: LaneSession
) -> None:
    first, second = fire(), fire(outcome=FireOutcome.MISSED)

    await note(lane, first, second)
    await note(lane, second)

    assert list(await process.storage.fires("nightly", limit=10)) == [first]


async def test_an_instant_that_was_left_out_gives_way_to_its_later_start(
    process: Process, lane: LaneSession
) -> None:
    missed = fire(outcome=FireOutcome.MISSED)
    started = replace(fire(), request_id=next_id(), manual=True)
    again = replace(started, request_id=next_id())

    await note(lane, missed)
    await note(lane, missed, started, again)
    await note(lane, again, missed)

    assert list(await process.storage.fires("nightly", limit=10)) == [started]


async def test_an_instant_is_one_whatever_zone_it_is_told_in(
    process: Process, lane: LaneSession
) -> None:
    zurich = NOON.astimezone(ZoneInfo("Europe/Zurich"))

    await note(lane, fire())
    await note(lane, fire(zurich, FireOutcome.MISSED))

    (stored,) = await process.storage.fires("nightly", limit=10)
    assert (stored.instant, stored.outcome) == (NOON, FireOutcome.STARTED)


# --- with the rest of a commit --------------------------------------------------------------------


async def test_a_fire_and_its_request_go_out_in_one_flush(
    process: Process, lane: LaneSession
) -> None:
    request = message(key="cron/nightly/1")
    started = replace(fire(), request_id=request.envelope.request_id)

    await lane.flush(
        [Commit(shard=ONE, requests=[request], fires=[started], schedules=[schedule()])]
    )

    assert list(await process.storage.fires("nightly", limit=10)) == [started]
    assert (await only(process)).name == "nightly"
    (row,) = (await sweep_of(lane)).rows
    assert row.envelope == request.envelope


async def test_a_refused_batch_moves_no_schedule(process: Process, lane: LaneSession) -> None:
    await save_one(process, message())
    taken = step(next_id(), 1)
    await lane.flush([Commit(shard=ONE, journal=[taken])])

    with pytest.raises(BadBatch):
        await lane.flush(
            [
                Commit(shard=ONE, schedules=[schedule()], fires=[fire()]),
                Commit(shard=ONE, journal=[taken]),
            ]
        )

    assert list(await process.storage.schedules()) == []
    assert list(await process.storage.fires("nightly", limit=10)) == []
