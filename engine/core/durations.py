"""Durations as people write them: ``1h30m``, ``250ms``, ``1.5d``."""

import re
from datetime import timedelta

EXAMPLES = "30s, 5m, 2h, 1d or 1h30m"
_UNITS = {
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def duration_from(text: str) -> timedelta:
    """``ValueError`` for anything else, ``OverflowError`` for one that is too long."""
    parts = _PART.findall(text)
    if not parts or "".join(number + unit for number, unit in parts) != text:
        raise ValueError(f"{text!r} is not a duration: write {EXAMPLES}")
    return sum((float(number) * _UNITS[unit] for number, unit in parts), timedelta(0))
