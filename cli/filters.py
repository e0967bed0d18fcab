"""Which executions a command is for: the options that ``ls``, ``prune`` and all that act on many
have in common."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from cli import arguments
from cli.durations import parse_duration, parse_time
from cli.executions import find
from cli.exits import UsageError

if TYPE_CHECKING:
    from engine.storage.protocol import ExecutionFilter, Storage

_ANY_TIME = datetime(2100, 1, 1, tzinfo=UTC)
_PANEL = "Which executions"
_TIME = "TIME|SPAN"


def _option(
    *names: str, help: str, metavar: str, min: int | None = None
) -> typer.models.OptionInfo:
    made: typer.models.OptionInfo = typer.Option(
        *names, help=help, metavar=metavar, min=min, rich_help_panel=_PANEL, show_default=False
    )
    return made


_FILTERS: dict[str, object] = {
    "workflow": Annotated[
        str | None, _option("--workflow", "-w", help="Of this workflow only.", metavar="NAME")
    ],
    "status": Annotated[
        list[str] | None,
        _option("--status", "-s", help="Of this status; may be repeated.", metavar="STATUS"),
    ],
    "attribute": Annotated[
        list[str] | None,
        _option("--attribute", "-a", help="With this attribute; may be repeated.", metavar="K=V"),
    ],
    "started_after": Annotated[
        str | None,
        _option("--started-after", help="Asked for later than that, or so ago.", metavar=_TIME),
    ],
    "started_before": Annotated[
        str | None,
        _option("--started-before", help="Asked for earlier than that, or so ago.", metavar=_TIME),
    ],
    "error": Annotated[
        str | None,
        _option("--error", help="That failed with an error of this type.", metavar="TYPE"),
    ],
    "version": Annotated[
        int | None,
        _option("--version", help="Pinned to this version of its code.", metavar="N", min=1),
    ],
    "parent": Annotated[
        str | None, _option("--parent", help="Children of this one.", metavar="ID")
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What was typed. A command that has a parameter of this type has all of the options."""

    OPTIONS: ClassVar[Mapping[str, object]] = _FILTERS

    workflow: str | None = None
    status: Sequence[str] | None = None
    attribute: Sequence[str] | None = None
    started_after: str | None = None
    started_before: str | None = None
    error: str | None = None
    version: int | None = None
    parent: str | None = None

    def __post_init__(self) -> None:
        """What cannot be meant is a ``UsageError`` at once, without a database."""
        arguments.statuses(self.status or [])
        arguments.attributes(self.attribute or [])
        for text in (self.started_after, self.started_before):
            _when(text, _ANY_TIME)

    @property
    def given(self) -> bool:
        """Whether anything was typed."""
        return any(getattr(self, name) for name in _FILTERS)

    async def read(self, storage: "Storage", now: datetime) -> "ExecutionFilter":
        """As the storage takes it; a parent is looked up."""
        from engine.storage.protocol import ExecutionFilter

        parent = None if self.parent is None else (await find(storage, self.parent)).request_id
        return ExecutionFilter(
            workflow=self.workflow,
            statuses=arguments.statuses(self.status or []),
            attributes=arguments.attributes(self.attribute or []),
            started_after=_when(self.started_after, now),
            started_before=_when(self.started_before, now),
            error=self.error,
            version=self.version,
            parent=parent,
        )


def parameters(filters: type[Filters]) -> list[inspect.Parameter]:
    """The options as parameters of a command."""
    kind = inspect.Parameter.KEYWORD_ONLY
    defaults = {each.name: each.default for each in fields(filters)}
    return [
        inspect.Parameter(name, kind, annotation=annotation, default=defaults[name])
        for name, annotation in filters.OPTIONS.items()
    ]


def _when(text: str | None, now: datetime) -> datetime | None:
    """A time, or one so long ago."""
    if text is None:
        return None
    try:
        return now - parse_duration(text)
    except OverflowError:
        raise UsageError(f"there was nothing {text} ago") from None
    except UsageError:
        return parse_time(text)
