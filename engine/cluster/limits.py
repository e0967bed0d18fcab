"""What a queue may do at once: how many items run, and how often one begins.

Declared on a ``cluster.queue``, changed by people at run time, kept by its ``cluster.dispatcher``.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any

from engine.core.errors import ConfigurationError

LIMITS = ("concurrency", "per_key", "per_runner", "rate")
LARGEST = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Rate:
    """``limit`` items may begin ``per`` so long, evenly spread; up to ``burst`` at once after a
    pause. In any time of a length t at most ``burst + limit * t / per`` begin (a token bucket).

    >>> Rate(10, timedelta(minutes=1))
    Rate(10 per 0:01:00, burst 1)
    """

    limit: int
    per: timedelta = timedelta(seconds=1)
    burst: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= LARGEST or not 1 <= self.burst <= LARGEST:
            raise ConfigurationError(f"limit and burst of a rate must be 1 or more, not {self!r}")
        if not timedelta(milliseconds=1) <= self.per <= timedelta(days=366):
            raise ConfigurationError(
                f"the period of a rate must be from a millisecond to a year, not {self.per}"
            )

    def __repr__(self) -> str:
        return f"Rate({self.limit} per {self.per}, burst {self.burst})"

    @property
    def _gap(self) -> timedelta:
        """The time of one token, rounded up."""
        return timedelta(microseconds=-(self.per // timedelta(microseconds=1) // -self.limit))

    def room(self, full_at: datetime | None, now: datetime) -> int:
        """How many may begin now, of a bucket that will be full at ``full_at``."""
        missing = timedelta(0) if full_at is None else max(full_at - now, timedelta(0))
        return max(0, self.burst - -(-missing // self._gap))

    def take(self, full_at: datetime | None, now: datetime, count: int) -> datetime:
        """When the bucket will be full, with so many taken now."""
        return (now if full_at is None else max(full_at, now)) + count * self._gap

    def bounded(self, full_at: datetime, now: datetime) -> datetime:
        """No emptier than empty: what another rate or another clock left of the bucket is not to
        hold this one up."""
        return min(full_at, now + self.burst * self._gap)

    def opens_at(self, full_at: datetime) -> datetime:
        """When there will be room for one."""
        return full_at - (self.burst - 1) * self._gap


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """``concurrency``: items of the queue that run at once; ``per_key``: of each key;
    ``per_runner``: on each runner. 0 is no limit. ``rate``: how often one begins."""

    concurrency: int = 0
    per_key: int = 0
    per_runner: int = 0
    rate: Rate | None = None

    def __post_init__(self) -> None:
        for name in ("concurrency", "per_key", "per_runner"):
            value = getattr(self, name)
            if type(value) is not int or not 0 <= value <= LARGEST:
                raise ConfigurationError(
                    f"{name} must be a whole number, 0 (no limit) or more, not {value!r}"
                )
        if self.rate is not None and not isinstance(self.rate, Rate):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"rate must be a Rate, as in Rate(10, timedelta(minutes=1)), not {self.rate!r}"
            )

    def changed(self, changes: Mapping[str, object]) -> "Limits":
        """These with others in the place of some, as ``as_json`` has them."""
        return replace(self, **from_json({**as_json(self), **changes}))


def as_json(limits: Limits) -> dict[str, Any]:
    """The limits as plain values."""
    rate = limits.rate
    plain = {each.name: getattr(limits, each.name) for each in fields(limits)}
    if rate is not None:
        seconds = rate.per.total_seconds()
        plain["rate"] = {"limit": rate.limit, "per": seconds, "burst": rate.burst}
    return plain


def from_json(plain: Mapping[str, Any]) -> dict[str, Any]:
    """Limits by name, from what ``as_json`` gives; others are passed over."""
    limits = {name: plain[name] for name in LIMITS if name in plain}
    if (rate := limits.get("rate")) is not None:
        per = timedelta(seconds=rate["per"])
        limits["rate"] = Rate(rate["limit"], per, rate["burst"])
    return limits


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueSettings:
    """A queue's limits as its class has them, and what people have set instead; whether it is
    paused, and why."""

    declared: Limits
    changes: Mapping[str, object]
    paused: bool = False
    reason: str = ""

    @property
    def limits(self) -> Limits:
        return self.declared.changed(self.changes)

    def encode(self) -> bytes:
        return json.dumps(
            {"declared": as_json(self.declared), "set": self.changes, "reason": self.reason}
        ).encode()

    @classmethod
    def decode(cls, settings: bytes, *, paused: bool) -> "QueueSettings":
        found: dict[str, Any] = json.loads(settings)
        return cls(
            declared=Limits(**from_json(found.get("declared", {}))),
            changes=found.get("set", {}),
            paused=paused,
            reason=found.get("reason", ""),
        )
