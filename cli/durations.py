"""Durations and times as people write and read them: ``1h30m``, ``250ms``, ``3m ago``."""

import re
from datetime import UTC, datetime, timedelta

from cli.exits import UsageError
from cli.output import printable

_ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)")


def parse_duration(text: str) -> timedelta:
    """``30s``, ``1h30m``, ``500ms``, ``1.5d``; anything else is a ``UsageError``."""
    from engine.core.durations import duration_from

    try:
        return duration_from(text)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OverflowError:
        raise UsageError(f"the duration {text!r} is too long") from None


def parse_time(text: str) -> datetime:
    """ISO 8601 with a zone; anything else is a ``UsageError``."""
    example = "such as 2025-06-01T09:00Z or 2025-06-01T11:00+02:00"
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(f"{text!r} is not a time: write ISO 8601, {example}") from None
    if when.tzinfo is None:
        raise UsageError(f"the time {text!r} names no zone: write it with one, {example}")
    return when


def brief(duration: timedelta) -> str:
    """At most two units, the way a table shows it: ``67ms``, ``1.3s``, ``2m 3s``, ``4d 2h``."""
    seconds = abs(duration.total_seconds())
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f}ms"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    for size, unit, rest_size, rest_unit in (
        (86_400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= size:
            rest = whole % size // rest_size
            return f"{whole // size}{unit}" + (f" {rest}{rest_unit}" if rest else "")
    raise AssertionError(whole)


def ago(when: datetime, now: datetime) -> str:
    """``3m ago``, or ``in 3m`` for a time to come."""
    return f"in {brief(when - now)}" if when > now else f"{brief(now - when)} ago"


def clock_time(when: datetime, *, milliseconds: bool = False) -> str:
    """A time in UTC."""
    precision = "milliseconds" if milliseconds else "seconds"
    return when.astimezone(UTC).replace(tzinfo=None).isoformat(" ", precision) + "Z"


def readable(sentence: str, now: datetime, *, short: bool = False) -> str:
    """A sentence of the engine's with its times as people read them: ``2025-06-01 09:00:00Z (in
    3m)``, or with ``short`` just ``in 3m``."""

    def spelled(match: re.Match[str]) -> str:
        when = datetime.fromisoformat(match[0])
        return ago(when, now) if short else f"{clock_time(when)} ({ago(when, now)})"

    return _ISO.sub(spelled, printable(sentence))


def iso(when: datetime | None) -> str | None:
    """A time for programs."""
    return None if when is None else when.astimezone(UTC).isoformat().replace("+00:00", "Z")
