"""``Timetable``: when something is to happen, and what if it cannot happen just then.

The part that all crons share; ``cluster.cron`` and ``workflow.cron`` say what happens. Read into
``Rules`` by the owner of its shard, which plans by them (``cluster.cron_plan``).
"""

from dataclasses import dataclass
from datetime import timedelta
from enum import Enum
from typing import Any, ClassVar

from engine.cluster.instants import Instants
from engine.core.errors import ConfigurationError
from engine.core.names import definition_name, refuse_reserved


class Overlap(Enum):
    """What happens at an instant while an earlier run has not ended."""

    SKIP = "skip"
    """Nothing: that instant is left out."""
    BUFFER_ONE = "buffer one"
    """It runs as soon as the earlier run has ended; further instants until then are left out."""
    ALLOW = "allow"
    """It runs beside the others."""
    CANCEL = "cancel"
    """The earlier run is interrupted, and this one begins when that has ended. Of several instants
    that come until then the last one runs."""


class Timetable:
    """What all crons have in common.

    ``schedule`` is a cron expression of five fields, or of six with the seconds first, in
    ``timezone``. ``catch_up``: an instant that nobody was there for runs late if it is noticed
    within this time, else it is left out; what is noticed within ten seconds always runs.
    ``skip_if_older_than`` (a second or more): a run that could only begin later than this after its
    instant (it had to wait for another, or for a runner) is left out. What has begun is not: a run
    whose runner dies is run again, however late.
    """

    name: ClassVar[str]
    shard_group: ClassVar[str] = "default"
    schedule: ClassVar[str]
    timezone: ClassVar[str] = "UTC"
    overlap: ClassVar[Overlap] = Overlap.SKIP
    catch_up: ClassVar[timedelta] = timedelta(days=1)
    skip_if_older_than: ClassVar[timedelta | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        refuse_reserved(cls, Timetable, reserved=frozenset(), options=_OPTIONS)
        if "name" not in cls.__dict__:
            cls.name = cls.__name__
        definition_name(cls.name, what=f"cron {cls.__qualname__}")
        if hasattr(cls, "schedule"):
            Rules.of(cls)


_OPTIONS = frozenset(name for name in Timetable.__annotations__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """A timetable, checked."""

    instants: Instants
    overlap: Overlap = Overlap.SKIP
    catch_up: timedelta = timedelta(days=1)
    skip_if_older_than: timedelta | None = None

    @classmethod
    def of(cls, table: Timetable | type[Timetable]) -> "Rules":
        """The rules of a cron; ``ConfigurationError`` says which of its attributes cannot be."""
        what = f"cron {table.name}"
        if not hasattr(table, "schedule"):
            raise ConfigurationError(
                f"{what} has no schedule; give it one, as in schedule = '30 2 * * *'"
            )
        if not isinstance(table.overlap, Overlap):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConfigurationError(
                f"the overlap of {what} is {table.overlap!r}; use one of Overlap.SKIP,"
                " Overlap.BUFFER_ONE, Overlap.ALLOW and Overlap.CANCEL"
            )
        return cls(
            instants=Instants(table.schedule, table.timezone, what=what),
            overlap=table.overlap,
            catch_up=_span(table.catch_up, what=f"catch_up of {what}"),
            skip_if_older_than=None
            if table.skip_if_older_than is None
            else _span(
                table.skip_if_older_than,
                what=f"skip_if_older_than of {what}",
                least=timedelta(seconds=1),  # nothing begins at its very instant
            ),
        )


def _span(value: object, *, what: str, least: timedelta = timedelta(0)) -> timedelta:
    if not isinstance(value, timedelta) or value < least:
        raise ConfigurationError(
            f"{what} is {value!r}; use a timedelta of {least.total_seconds():g} seconds or more,"
            " as in timedelta(hours=1)"
        )
    return value
