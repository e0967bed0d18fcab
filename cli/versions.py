"""Which code executions need that have not ended: ``versions``, ``patches``."""

from typing import TYPE_CHECKING, Annotated

import typer

from cli.command import add_command
from cli.session import Session

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from engine.versions import VersionInfo

PANEL = "Look"
Workflow = Annotated[
    str | None, typer.Argument(metavar="[WORKFLOW]", help="Of this one only.", show_default=False)
]


def add_to(app: typer.Typer) -> None:
    """The commands of this group."""
    for function in (versions, patches):
        add_command(app, function, panel=PANEL)


async def versions(session: Session, workflow: Workflow = None) -> None:
    """List the versions of workflows, with how many executions need each that have not ended.

    A status has a column when one of them has it. A version may go from the runners when nothing is
    left of it. UNSERVED are those whose owner has not its code, MISFITS those that are blocked
    because their journal does not fit it.
    """
    from cli import forms
    from engine.core.status import Status
    from engine.versions import troubles
    from engine.versions import versions as read

    async with session.storage() as storage:
        found = await read(storage, workflow)
    statuses = [
        status
        for status in Status
        if not status.finished and any(info.live.get(status) for info in found)
    ]
    session.output.table(
        found,
        form=forms.version,
        columns=[
            *("WORKFLOW", ">VERSION", ">RUNNERS"),
            *(f">{str(status).upper()}" for status in statuses),
            *(">UNSERVED", ">MISFITS"),
        ],
        row=lambda info: _version_row(info, statuses),
        empty="no workflow is served, and none has executions that have not ended",
    )
    for message, fix in troubles(found):
        session.output.note(f"{message}: {fix}")


async def patches(session: Session, workflow: Workflow = None) -> None:
    """List what patched() has answered executions that have not ended, by change.

    The old way can go from the code when nobody is left on it, nor among the UNASKED, who have not
    got there or have not been replayed since the change.
    """
    from cli import forms
    from engine.versions import patches as read

    async with session.storage() as storage:
        found = await read(storage, workflow)
    session.output.table(
        found,
        form=forms.patch,
        columns=["WORKFLOW", "CHANGE", ">NEW", ">OLD", ">UNASKED"],
        row=lambda info: [
            info.workflow,
            info.change,
            str(info.new),
            str(info.old),
            str(info.unasked),
        ],
        empty="no execution that has not ended has asked patched()",
    )


def _version_row(info: "VersionInfo", statuses: "Sequence[object]") -> "list[RenderableType]":
    from rich.text import Text

    counts = {str(status): count for status, count in info.live.items()}
    return [
        info.workflow,
        "" if info.version is None else str(info.version),
        "" if info.version is None else str(info.runners),
        *(str(counts.get(str(status), 0)) for status in statuses),
        Text(str(info.unserved), style="red" if info.unserved else ""),
        Text(str(info.misfits), style="red" if info.misfits else ""),
    ]
