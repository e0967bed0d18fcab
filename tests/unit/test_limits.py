"""The limits of a queue: a rate is kept over any time, and limits are read as they were written."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cluster.limits import Limits, QueueSettings, Rate
from engine.core.errors import ConfigurationError

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def test_a_bucket_fills_up_again() -> None:
    rate = Rate(2, SECOND, burst=3)

    assert rate.room(None, NOON) == 3
    full_at = rate.take(None, NOON, 3)
    assert rate.room(full_at, NOON) == 0
    assert rate.opens_at(full_at) == NOON + SECOND / 2
    assert rate.room(full_at, NOON + SECOND / 2) == 1
    assert rate.room(full_at, NOON + 10 * SECOND) == 3


@given(
    limit=st.integers(1, 50),
    burst=st.integers(1, 20),
    pauses=st.lists(st.floats(0, 3), min_size=1, max_size=60),
)
def test_no_window_has_more_than_the_rate_allows(
    limit: int, burst: int, pauses: list[float]
) -> None:
    rate, now, full_at = Rate(limit, SECOND, burst), NOON, None
    began: list[datetime] = []
    for pause in pauses:
        now += timedelta(seconds=pause)
        room = rate.room(full_at, now)
        if room:
            full_at = rate.take(full_at, now, room)
            began.extend([now] * room)

    for first in range(len(began)):
        for last in range(first, len(began)):
            window = (began[last] - began[first]) / SECOND
            assert last - first + 1 <= burst + limit * window


def test_settings_are_read_as_they_were_written() -> None:
    declared = Limits(concurrency=3, per_key=1, rate=Rate(10, timedelta(minutes=1), burst=2))
    changes = {"concurrency": 0, "rate": None}
    settings = QueueSettings(declared=declared, changes=changes, paused=True, reason="a sale")

    read = QueueSettings.decode(settings.encode(), paused=True)

    assert read == settings
    assert read.limits == Limits(per_key=1)


@pytest.mark.parametrize(
    "limits",
    [
        {"concurrency": -1},
        {"per_key": 1.5},
        {"per_runner": True},
        {"rate": 10},
        {"concurrency": 1 << 40},
    ],
)
def test_limits_that_cannot_be_are_refused(limits: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(limits))):
        Limits(**limits)  # type: ignore[arg-type]


def test_a_rate_that_cannot_be_is_refused() -> None:
    for make in (lambda: Rate(0), lambda: Rate(1, burst=0), lambda: Rate(1, timedelta(0))):
        with pytest.raises(ConfigurationError):
            make()
