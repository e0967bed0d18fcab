"""What a pause is in a journal: a PAUSED row, until a RESUMED row of the same name.

An execution is paused by a message, a workflow as a whole by a row of its own (``storage.pauses``),
which the executions that were in memory journal too. ``workflow.host`` keeps what comes for those
that stand still; ``workflow.resident`` lets one come to a stand.
"""

from collections.abc import Iterable
from datetime import datetime
from typing import Final

from engine.core.errors import InvalidPayload
from engine.core.journal import JournalKind, JournalRow
from engine.storage.protocol import InboxRow
from engine.workflow.tags import RESUME, TERMINATE, decode_order

EXECUTION: Final = "execution"
"""The name of rows that speak of a pause of the execution alone."""
WORKFLOW: Final = "workflow"
"""The name of those that speak of a pause of its whole workflow."""


def keep_pauses(paused: dict[str, JournalRow], row: JournalRow) -> None:
    """Take a row into account: ``paused`` are the pauses that are not over, by name."""
    if row.kind is JournalKind.PAUSED:
        paused.setdefault(row.name, row)
    elif row.kind is JournalKind.RESUMED:
        paused.pop(row.name, None)


def pauses_of(journal: Iterable[JournalRow]) -> dict[str, JournalRow]:
    """The pauses that are not over at the end of a journal."""
    paused = dict[str, JournalRow]()
    for row in journal:
        keep_pauses(paused, row)
    return paused


def ends_pause(row: InboxRow) -> bool:
    """Whether a message is for one that is paused, so that it is loaded for that."""
    return row.told in (RESUME, TERMINATE)


def told(payload: bytes, at: datetime) -> str:
    """Who has paused it, since when and why, in words."""
    try:
        reason, by = decode_order(payload)
    except InvalidPayload:
        reason, by = "", ""
    return in_words(reason, by, at)


def in_words(reason: str, by: str, at: datetime) -> str:
    """Who, since when and why."""
    who = f" by {by}" if by else ""
    return f"since {at.isoformat(timespec='seconds')}{who}" + (f": {reason}" if reason else "")
