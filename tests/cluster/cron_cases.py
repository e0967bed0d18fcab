"""Cron expressions, zones and times for property tests."""

from datetime import UTC, datetime, timedelta
from itertools import takewhile
from zoneinfo import ZoneInfo

from cronsim import CronSim
from hypothesis import settings
from hypothesis import strategies as st

unhurried = settings(deadline=None)
"""For properties that enumerate, on a busy machine."""
SECOND = timedelta(seconds=1)
ZONES = (
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "Australia/Sydney",
    "America/Santiago",
    "Africa/Cairo",
    "Asia/Kathmandu",
)


def field(low: int, high: int) -> st.SearchStrategy[str]:
    """One field of a cron expression."""
    number = st.integers(low, high)
    return st.one_of(
        st.just("*"),
        number.map(str),
        st.integers(2, 7).map(lambda step: f"*/{step}"),
        st.tuples(number, number).map(lambda ends: f"{min(ends)}-{max(ends)}"),
        st.lists(number, min_size=2, max_size=3).map(lambda each: ",".join(map(str, each))),
    )


_days = st.one_of(st.just("*"), field(1, 28))
_weekdays = st.one_of(st.just("*"), field(0, 6))
five_fields = st.tuples(field(0, 59), field(0, 23), _days, st.just("*"), _weekdays).map(" ".join)
six_fields = st.tuples(field(0, 59), five_fields).map(" ".join)
expressions = st.one_of(five_fields, six_fields)
zones = st.sampled_from(ZONES)
moments = st.one_of(
    st.integers(0, 60 * 24 * 3600).map(lambda s: datetime(2026, 3, 1, tzinfo=UTC) + s * SECOND),
    st.integers(0, 80 * 24 * 3600).map(lambda s: datetime(2026, 8, 28, tzinfo=UTC) + s * SECOND),
)
"""Times around the changes of clocks in both hemispheres."""


def enumerated(schedule: str, zone: str, after: datetime, until: datetime) -> list[datetime]:
    """What the library itself says, in UTC."""
    simulated = CronSim(schedule, after.astimezone(ZoneInfo(zone)))
    return list(takewhile(lambda at: at <= until, (at.astimezone(UTC) for at in simulated)))
