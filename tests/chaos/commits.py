"""What the database committed, in that order, as triggers noted it: who wrote what for which shard.

Judged for ``tests.chaos.checker``.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from engine.core.journal import JournalKind
from tests.chaos.promises import Violation

TRANSACTION = "user"
"""The role of the session that a @transaction's rows are written by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A ``journal`` row with its kind and position, one that ``changed``, a ``reply`` (or that of
    an ``item``) with its kind and sequence, a ``shard`` with its new epoch and owner."""

    what: str
    request: int = 0
    name: str = ""
    number: int = 0
    kind: int = 0
    shard: int = 0
    writer: str = ""
    role: str = "lane"
    owner: str = ""
    epoch: int = 0


def check_rows(rows: Sequence[Row]) -> Iterator[Violation]:
    epochs: dict[int, Row] = {}
    positions: dict[int, Row] = {}
    replies: dict[int, list[Row]] = defaultdict(list)
    for row in rows:
        key = f"request {row.request}"
        match row.what:
            case "shard":
                before = epochs.get(row.shard)
                epochs[row.shard] = row
                if before is not None and row.epoch <= before.epoch:
                    what = f"{before.epoch} of {before.owner}, then {row.epoch} of {row.owner}"
                    yield Violation(promise="epochs", key=f"shard {row.shard}", what=what)
                continue
            case "changed":
                yield Violation(promise="journal", key=key, what=f"{row.number} changed")
                continue
            case "journal":
                last = positions.get(row.request)
                if last is not None and row.number <= last.number and not _passed(last, row):
                    yield Violation(promise="journal", key=key, what=f"{row} came after {last}")
                if last is None or row.number > last.number:
                    positions[row.request] = row
            case _:
                replies[row.request].append(row)
        if row.what == "item":  # its exit is written where it was processed
            continue
        if row.writer != row.owner:
            what = f"{row.what} {row.number} by {row.writer} in shard {row.shard} of {row.owner}"
            yield Violation(promise="fenced", key=key, what=what)
        since = epochs.get(row.shard)
        if since is not None and row.writer != since.owner:
            what = f"{row.what} {row.number} by {row.writer} after epoch {since.epoch}"
            yield Violation(promise="fenced", key=key, what=what)
    for request, found in replies.items():
        yield from _replies(f"request {request}", found)


def _passed(last: Row, row: Row) -> bool:
    """A transaction commits its own row: ahead of what the lane is still to write, and behind the
    calls that left meanwhile. No replay comes between them if they are of one epoch."""
    ahead = last.role == TRANSACTION
    behind = row.role == TRANSACTION and last.kind == JournalKind.CALL
    return last.number != row.number and last.epoch == row.epoch and (ahead or behind)


def _replies(key: str, rows: list[Row]) -> Iterator[Violation]:
    exits = [row for row in rows if row.kind]
    if len(exits) > 1:
        yield Violation(promise="one exit", key=key, what=f"{len(exits)} were stored")
    for before, after in pairwise(rows):
        if after.number != before.number + 1 or before.kind:
            what = f"{after.number} after {before.number} of kind {before.kind}"
            yield Violation(promise="chunks", key=key, what=what)
    if rows[0].number:
        yield Violation(promise="chunks", key=key, what=f"the first is {rows[0].number}")
