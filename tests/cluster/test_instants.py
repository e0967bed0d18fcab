"""The instants of a schedule: those of the library, from wherever one begins to ask."""

from datetime import UTC, datetime, timedelta
from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import ConfigurationError
from engine.cluster.instants import Instants, instant_text
from tests.cluster.cron_cases import enumerated, expressions, moments, unhurried, zones


def on(day: str, schedule: str, zone: str) -> list[str]:
    """The instants of a day (in UTC) as times of day in UTC."""
    begin = datetime.fromisoformat(day).replace(tzinfo=UTC)
    instants = Instants(schedule, zone)
    return [
        f"{at:%H:%M:%S}" for at in instants.between(begin, begin + timedelta(days=1, seconds=-1))
    ]


@unhurried
@given(expressions, zones, moments, st.timedeltas(timedelta(0), timedelta(hours=3)))
def test_they_are_those_that_the_library_enumerates(
    schedule: str, zone: str, after: datetime, span: timedelta
) -> None:
    found = list(Instants(schedule, zone).between(after + timedelta(microseconds=1), after + span))

    assert found == [at for at in enumerated(schedule, zone, after, after + span) if at > after]


@unhurried
@given(expressions, zones, moments, st.integers(0, 40), st.integers(-1, 1))
def test_it_does_not_matter_where_one_begins_to_ask(
    schedule: str, zone: str, after: datetime, number: int, seconds: int
) -> None:
    instants = Instants(schedule, zone)
    found = list(islice(instants.after(after), 41))
    later = max(after, found[number] + timedelta(seconds=seconds))

    rest = [at for at in found if at > later]

    assert list(islice(instants.after(later), len(rest))) == rest


@unhurried
@given(expressions, zones, moments)
def test_they_are_in_order_and_each_is_one_of_them(
    schedule: str, zone: str, after: datetime
) -> None:
    instants = Instants(schedule, zone)

    found = list(islice(instants.after(after), 20))

    assert found == sorted(set(found))
    assert all(at in instants and at > after for at in found)
    assert found[0] + timedelta(microseconds=1) not in instants


def test_five_fields_fire_at_the_full_minute() -> None:
    assert on("2026-01-01", "*/20 6 * * *", "UTC") == ["06:00:00", "06:20:00", "06:40:00"]


def test_six_fields_have_the_seconds_first() -> None:
    assert on("2026-01-01", "*/20 59 23 * * *", "UTC") == ["23:59:00", "23:59:20", "23:59:40"]


@pytest.mark.parametrize(
    ("day", "schedule", "zone", "expected"),
    [
        # The clocks go forward: 02:30 does not exist, and runs as soon as that hour would be over.
        ("2026-03-29", "30 2 * * *", "Europe/Berlin", ["01:00:00"]),
        ("2026-03-08", "30 2 * * *", "America/New_York", ["07:00:00"]),
        # The clocks go back: 02:30 comes twice, and runs the first time.
        ("2026-10-25", "30 2 * * *", "Europe/Berlin", ["00:30:00"]),
        ("2026-11-01", "30 1 * * *", "America/New_York", ["05:30:00"]),
        # What is not at a fixed time goes by the clock on the wall.
        ("2026-03-29", "*/30 * * * *", "Europe/Berlin", 48),
        ("2026-10-25", "*/30 * * * *", "Europe/Berlin", 48),
        ("2026-03-29", "0 30 2 * * *", "Europe/Berlin", []),
        ("2026-10-25", "0 30 2 * * *", "Europe/Berlin", ["00:30:00", "01:30:00"]),
        ("2026-03-08", "0 30 2 * * *", "America/New_York", []),
        ("2026-11-01", "0 30 1 * * *", "America/New_York", ["05:30:00", "06:30:00"]),
    ],
)
def test_on_the_days_when_the_clocks_change(
    day: str, schedule: str, zone: str, expected: list[str] | int
) -> None:
    found = on(day, schedule, zone)

    assert (len(found) if isinstance(expected, int) else found) == expected


def test_a_day_that_never_comes_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="Bad day-of-month"):
        Instants("0 0 30 2 *", "UTC")


@pytest.mark.parametrize("schedule", ["", "* * * *", "61 * * * *", "@daily", "* * * * * * *"])
def test_what_is_no_expression_is_refused_with_what_one_looks_like(schedule: str) -> None:
    with pytest.raises(ConfigurationError, match=r"five fields .* or six with the seconds first"):
        Instants(schedule, "UTC")


@pytest.mark.parametrize("zone", ["", "Berlin", "Mars/Base", "../../etc/passwd", "+02:00"])
def test_an_unknown_zone_is_refused_with_what_one_looks_like(zone: str) -> None:
    with pytest.raises(ConfigurationError, match="such as 'Europe/Berlin'"):
        Instants("* * * * *", zone)


def test_an_instant_is_written_in_utc() -> None:
    instant = next(Instants("30 2 * * *", "Europe/Berlin").after(datetime(2026, 7, 1, tzinfo=UTC)))

    assert instant_text(instant) == "2026-07-01T00:30:00Z"
