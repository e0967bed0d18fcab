"""``Instants``: when a schedule is to fire, as a cron expression in a time zone says.

The expressions and what daylight saving does to them are cronsim's, which follows Debian's cron.
Read by ``cluster.timetable`` at definition, and by the owner of a schedule to know what is next.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, takewhile
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from engine.core.errors import ConfigurationError

_SECOND = timedelta(seconds=1)
_TICK = timedelta(microseconds=1)


class Instants:
    """The instants of a cron expression of five fields, or of six with the seconds first.

    Where the clocks go forward, a five-field expression with fixed minutes and hours that would
    fire in the hour that is left out fires right after it; where they go back, it fires in the
    first of the two hours only. Every other expression goes by what the clock on the wall shows:
    nothing in the hour that is left out, and both times in the one that comes twice.

    >>> berlin = Instants("30 2 * * *", "Europe/Berlin")
    >>> [str(at) for at in islice(berlin.after(datetime(2026, 3, 28, tzinfo=UTC)), 2)]
    ['2026-03-28 01:30:00+00:00', '2026-03-29 01:00:00+00:00']
    """

    __slots__ = ("_zone", "schedule", "timezone")

    def __init__(self, schedule: str, timezone: str, *, what: str = "this schedule") -> None:
        self.schedule: str = schedule
        self.timezone: str = timezone
        try:
            self._zone = ZoneInfo(timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError, TypeError) as error:
            raise ConfigurationError(
                f"the timezone of {what} is {timezone!r}, which is not known here;"
                " use a name of the tz database such as 'Europe/Berlin', or 'UTC'"
            ) from error
        try:
            CronSim(schedule, datetime(2026, 1, 1, tzinfo=UTC))
        except (CronSimError, AttributeError) as error:
            raise ConfigurationError(
                f"the schedule of {what} is {schedule!r}, which is no cron expression ({error});"
                " write five fields 'minute hour day month weekday', as in '30 2 * * MON-FRI',"
                " or six with the seconds first, as in '*/10 * * * * *'"
            ) from error

    def after(self, instant: datetime) -> Iterator[datetime]:
        """All instants later than that, in order, in UTC. It ends where there is none in 50 years.

        What comes later does not depend on where the asking begins (which is so in all zones that
        change their clocks by whole hours at full hours).
        """
        # cronsim counts whole seconds, and may begin in the earlier of two equal hours.
        begin = instant.astimezone(self._zone)
        for found in CronSim(self.schedule, begin):
            at = found.astimezone(UTC)
            if at > instant:
                yield at

    def next(self, after: datetime) -> datetime | None:
        """The first instant later than that, if there ever is one."""
        return next(self.after(after), None)

    def between(self, first: datetime, last: datetime) -> Iterator[datetime]:
        """The instants from the first to the last, both included."""
        return takewhile(lambda at: at <= last, self.after(first - _TICK))

    def __contains__(self, instant: datetime) -> bool:
        return next(islice(self.between(instant, instant), 1), None) is not None


def instant_text(instant: datetime) -> str:
    """An instant as keys and ids name it: ISO 8601 in UTC.

    >>> instant_text(datetime(2026, 3, 29, 1, tzinfo=UTC))
    '2026-03-29T01:00:00Z'
    """
    return instant.astimezone(UTC).isoformat().replace("+00:00", "Z")
