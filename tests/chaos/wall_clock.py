"""The wall clock of this process, which can be stepped: what Python code sees of it."""

import time
from datetime import datetime, timedelta, tzinfo
from typing import Self

from engine.core import clock

_TOLD, _TOLD_NS = time.time, time.time_ns
_stepped = [0.0]


class _Datetime(datetime):
    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) + timedelta(seconds=_stepped[0])


def step_wall_clock(seconds: float) -> None:
    """Put the clock forwards, or back. The monotonic clock goes on as before, and so do others'."""
    _stepped[0] += seconds
    right = not _stepped[0]
    time.time = _TOLD if right else lambda: _TOLD() + _stepped[0]
    time.time_ns = _TOLD_NS if right else lambda: _TOLD_NS() + round(_stepped[0] * 1e9)
    clock.datetime = datetime if right else _Datetime  # type: ignore[misc] # where the engine reads it
