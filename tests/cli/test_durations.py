"""Durations and times are read strictly and shown briefly."""

from datetime import UTC, datetime, timedelta

import pytest

from cli.durations import ago, brief, clock_time, parse_duration, parse_time, readable
from cli.exits import UsageError

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("5m", 300), ("2h", 7200), ("1d", 86400), ("1h30m", 5400), ("500ms", 0.5)],
)
def test_a_duration_has_a_number_and_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text).total_seconds() == seconds


@pytest.mark.parametrize("text", ["", "30", "s", "-5s", "1y", "1 h", "5sx", "1e9h"])
def test_anything_else_is_no_duration(text: str) -> None:
    with pytest.raises(UsageError, match="is not a duration: write 30s"):
        parse_duration(text)


def test_a_duration_beyond_all_bounds_is_refused() -> None:
    with pytest.raises(UsageError, match="too long"):
        parse_duration("99999999999999d")


def test_a_time_needs_a_zone() -> None:
    assert parse_time("2025-06-01T14:00+02:00") == NOW
    with pytest.raises(UsageError, match="names no zone"):
        parse_time("2025-06-01T14:00")
    with pytest.raises(UsageError, match="is not a time"):
        parse_time("tomorrow")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0ms"),
        (0.0674, "67ms"),
        (0.9999, "1.0s"),
        (1.34, "1.3s"),
        (9.96, "10s"),
        (59.6, "1m"),
        (123, "2m 3s"),
        (3599.9, "1h"),
        (3 * 3600 + 62, "3h 1m"),
        (4 * 86400 + 7300, "4d 2h"),
    ],
)
def test_a_duration_is_shown_in_two_units_at_most(seconds: float, shown: str) -> None:
    assert brief(timedelta(seconds=seconds)) == shown


def test_times_are_shown_as_distances_and_in_utc() -> None:
    assert ago(NOW - timedelta(minutes=3), NOW) == "3m ago"
    assert ago(NOW + timedelta(hours=2), NOW) == "in 2h"
    assert clock_time(NOW) == "2025-06-01 12:00:00Z"
    assert clock_time(NOW, milliseconds=True) == "2025-06-01 12:00:00.000Z"


def test_times_inside_a_sentence_become_readable() -> None:
    sentence = "due 2025-06-01T14:00:00.123456+00:00, since 2025-06-01T11:59:00Z"

    assert readable(sentence, NOW, short=True) == "due in 2h, since 1m ago"
    assert readable(sentence, NOW) == (
        "due 2025-06-01 14:00:00Z (in 2h), since 2025-06-01 11:59:00Z (1m ago)"
    )
