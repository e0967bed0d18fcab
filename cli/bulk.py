"""Do one thing to many executions from the command line: the options for it, and how it is told.

Under ``repairing``, whose commands take an execution or a filter.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from cli.durations import ago
from cli.exits import CommandError, UsageError
from cli.filters import Filters
from cli.output import printable
from cli.session import Session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from datetime import datetime

    from engine.bulk import Action, BulkResult

_PANEL = "Many at once"
_TELL_EVERY = 2.0
_DONE: "dict[Action, str]" = {
    "interrupt": "interrupted",
    "terminate": "terminated",
    "retry": "retried",
    "pause": "paused",
    "resume": "resumed",
}

_MANY: dict[str, object] = {
    "dry_run": Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Only list those that match, do nothing.", rich_help_panel=_PANEL
        ),
    ],
    "rate": Annotated[
        float | None,
        typer.Option(
            "--rate",
            help="At most so many a second.",
            metavar="N",
            min=0.001,
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ],
    "limit": Annotated[
        int | None,
        typer.Option(
            "--limit",
            "-n",
            help="At most so many, the youngest first.",
            metavar="N",
            min=1,
            rich_help_panel=_PANEL,
            show_default=False,
        ),
    ],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Many(Filters):
    """The options of a command that is for one execution, or for all that match."""

    OPTIONS: ClassVar[Mapping[str, object]] = {**Filters.OPTIONS, **_MANY}

    dry_run: bool = False
    rate: float | None = None
    limit: int | None = None

    def one(self, target: str | None) -> str | None:
        """The one that is meant; None for all that match. Neither and both are ``UsageError``."""
        if target is not None and (self.given or self.dry_run):
            raise UsageError(f"name one execution ({target}) or say which by options, not both")
        if target is None and not self.given:
            raise UsageError("name an execution, or say which are meant: --workflow, --status, …")
        return target


async def do_to_all(session: Session, action: "Action", many: Many, *, reason: str = "") -> None:
    """Do it to all that match."""
    from engine import bulk

    async with session.node() as node:
        now = node.clock.now()
        results = bulk.act(
            node,
            action,
            await many.read(node.storage, now),
            reason=reason,
            rate=many.rate,
            limit=many.limit,
            dry_run=many.dry_run,
        )
        await tell_all(session, results, _DONE[action], now, dry_run=many.dry_run)


async def tell_all(
    session: Session,
    results: "AsyncIterator[BulkResult]",
    done: str,
    now: "datetime",
    *,
    dry_run: bool,
) -> None:
    """Tell how far it has come, and in the end to how many it was done. Exit code 1 when there were
    some that it could not be done to."""
    from engine.core.clock import monotonic

    count, problems, told = 0, 0, monotonic()
    try:
        async for result in results:
            count += result.done or dry_run
            problems += bool(result.problem)
            _tell(session, result, done, now, dry_run=dry_run)
            if monotonic() - told > _TELL_EVERY:
                told = monotonic()
                session.output.note(f"{count} so far")
    finally:
        summary = f"{count} {'match: nothing was done' if dry_run else done}"
        if problems:
            summary += f", {problems} could not be"
        if session.output.as_json:
            session.output.note(summary)
        else:
            session.output.say(summary)
    if problems:
        raise CommandError(f"{problems} could not be {done}: see above")


def _tell(
    session: Session, result: "BulkResult", done: str, now: "datetime", *, dry_run: bool
) -> None:
    info = result.execution
    name = f"{info.workflow}/{info.id}"
    if session.output.as_json:
        form: dict[str, object] = {"id": name, "status": str(info.status), done: result.done}
        session.output.line(form | ({"problem": result.problem} if result.problem else {}))
    elif dry_run:
        session.output.say(f"{name}  {info.status}  {ago(info.created_at, now)}")
    elif result.problem:
        session.output.say(printable(f"{name}: {result.problem}"))
