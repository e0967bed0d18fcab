"""Where an execution goes on from when it is repaired: which rows of its journal a new run keeps.

Used by ``engine.admin``, which stores the new run (``retry``) or execution (``fork``), and by
``workflow.resident`` for one that is blocked by a compensation. ``workflow.replay`` reads it back.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Final

from engine.core.errors import ConfigurationError, NotFound
from engine.core.ids import Snowflake
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.record import record
from engine.core.status import Status
from engine.storage.protocol import LoadedExecution

ANY_DIGEST: Final = 0
"""The digest of a step's row that fits all arguments."""
ABANDONED: Final = b'"abandon"'
"""The payload of the CALL row of a child that may outlive its parent."""
_Call = tuple[str, int, int]
_OF_ONE_RUN = frozenset(
    {JournalKind.REPAIRED, JournalKind.PAUSED, JournalKind.RESUMED, JournalKind.RETRIED}
)
"""What is not copied: who repairs an execution wants it to go on."""
_MESSAGES = frozenset(
    {JournalKind.RESOLVED, JournalKind.SIGNAL, JournalKind.UPDATE, JournalKind.ANSWER}
)


@record
class Origin:
    """What a body must be given to run as the run did that its journal was copied from.

    ``seed`` is that of its random numbers and idempotency keys; ``children`` are the ids of the
    children that the runs before have started and that this one is to have, by the name and ordinal
    of their steps and the digest of the call that they answer. The last of the copied rows is at
    ``until`` (0: there is none); what follows it happens from ``at`` on.
    """

    seed: str
    until: int = 0
    at: datetime | None = None
    children: Mapping[_Call, str] = field(default_factory=dict[_Call, str])

    def child(self, name: str, ordinal: int, digest: int) -> str | None:
        """The id of a call's child, if a run before has started it."""
        found = (self.children.get((name, ordinal, each)) for each in (digest, ANY_DIGEST))
        return next((id for id in found if id is not None), None)

    def later(self, row: JournalRow) -> datetime:
        """From when on happens what follows a row: from its own time on, unless it is the last of
        those that were copied. A timer that starts behind it would else be due at once."""
        return row.at if self.at is None or row.position != self.until else max(self.at, row.at)

    @classmethod
    def of(cls, loaded: LoadedExecution) -> "Origin":
        first = loaded.journal[0] if loaded.journal else None
        if first is None or first.kind is not JournalKind.REPAIRED:
            return cls(seed=f"{loaded.execution.request_id}:{loaded.execution.run}")
        stored = json.loads(first.payload)
        children = {(name, ordinal, of): id for name, ordinal, id, of in stored["children"]}
        return cls(
            seed=stored["seed"],
            children=children,
            until=stored["until"],
            at=datetime.fromisoformat(stored["asked_at"]),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Who wants a repair, and when."""

    by: str
    at: datetime


def retried(
    loaded: LoadedExecution, children: Mapping[Snowflake, str], *, order: Order
) -> list[JournalRow]:
    """The rows of a run that goes on from the last good step. ``children`` are the ids of the
    executions that its calls have started, by request id.

    ``ConfigurationError`` when its compensations have begun to undo what it had done.
    """
    journal = loaded.journal
    undone = any(row.kind is JournalKind.COMPENSATING for row in journal)
    if undone and loaded.execution.status is not Status.BLOCKED:
        raise ConfigurationError(
            "its compensations have run, so it cannot go on from where it was: start another"
            " execution, or fork it from its first step"
        )
    cut = len(journal)
    for index in range(len(journal) - 1, -1, -1):
        row = journal[index]
        if row.kind is JournalKind.STEP and row.outcome is Outcome.OK:
            break
        if row.kind not in _MESSAGES and _ended_it(row):
            cut = index
    return _copied(loaded, cut, children, name="retry", order=order)


def restarted(loaded: LoadedExecution, *, order: Order) -> list[JournalRow]:
    """The rows of a run that begins from the beginning, with nothing of the runs before it."""
    run = loaded.execution.run + 1
    origin = Origin(seed=f"{loaded.execution.request_id}:{run}")
    return [_note(loaded, origin, name="restart", order=order, run=run, at=order.at)]


def forked(
    loaded: LoadedExecution,
    children: Mapping[Snowflake, str],
    *,
    from_step: str | int,
    request_id: Snowflake,
    request: bytes | None,
    order: Order,
) -> list[JournalRow]:
    """The rows of a new execution that goes on from before a step, or a position. A step is named
    as in the history, ``charge`` or ``charge#2`` for its second call. For another request, what
    the steps before it gave is kept, whatever they would be called with now. ``NotFound``."""
    cut = _index_of(loaded.journal, from_step)
    rows = _copied(loaded, cut, children, name="fork", order=order, as_=request_id)
    if request is None:
        return rows
    return [
        replace(row, payload=request)
        if row.kind is JournalKind.CONTINUED
        else replace(row, digest=ANY_DIGEST)
        for row in rows
    ]


def _ended_it(row: JournalRow) -> bool:
    """Whether a row is part of the end of a run: an error, or a wish that it ends."""
    match row.kind:
        case JournalKind.INTERRUPT | JournalKind.TERMINATED:
            return True
        case JournalKind.STEP:
            return row.outcome is not Outcome.OK
        case _:
            return False


def _index_of(journal: Sequence[JournalRow], from_step: str | int) -> int:
    if isinstance(from_step, int):
        found = (index for index, row in enumerate(journal) if row.position >= from_step)
        return next(found, len(journal))
    name, mark, number = from_step.rpartition("#")
    ordinal = int(number) - 1 if mark and number.isdigit() else 0
    name = name if mark and number.isdigit() else from_step
    for index, row in enumerate(journal):
        if row.name == name and row.ordinal == ordinal and row.kind in _OF_STEPS:
            return index
    names = dict.fromkeys(row.name for row in journal if row.kind in _OF_STEPS)
    raise NotFound(f"its journal has no step {from_step!r}; it has {', '.join(names) or 'none'}")


_OF_STEPS = frozenset(
    {JournalKind.STEP, JournalKind.ATTEMPT, JournalKind.CALL, JournalKind.POSTPONED}
)


def _copied(
    loaded: LoadedExecution,
    cut: int,
    children: Mapping[Snowflake, str],
    *,
    name: str,
    order: Order,
    as_: Snowflake | None = None,
) -> list[JournalRow]:
    """What is before ``cut``, but for the beginnings of steps that have no end there: they begin
    anew. A child that was left to itself is there still, wherever it was started: who calls it
    again with the same request, in the same execution, gets it."""
    origin = Origin.of(loaded)
    execution = as_ or loaded.execution.request_id
    run = 1 if as_ else loaded.execution.run + 1
    before = [row for row in loaded.journal[:cut] if row.kind not in _OF_ONE_RUN]
    ended = {(row.name, row.ordinal) for row in before if row.kind is JournalKind.STEP}
    kept = [
        row
        for row in before
        if row.kind not in (JournalKind.CALL, JournalKind.ATTEMPT, JournalKind.POSTPONED)
        or (row.name, row.ordinal) in ended
    ]
    ids = {of: child for of, child in origin.children.items() if not as_ or of[:2] in ended}
    for row in kept if as_ else loaded.journal:
        child = None if row.source is None else children.get(row.source)
        if row.kind is JournalKind.CALL and child is not None:
            key = (row.name, row.ordinal)
            if key in ended:
                ids[*key, ANY_DIGEST] = child
            elif row.payload == ABANDONED:
                ids[*key, row.digest] = child
    first = _note(
        loaded,
        Origin(seed=origin.seed, children=ids, until=kept[-1].position if kept else 0),
        name=name,
        order=order,
        run=run,
        at=loaded.execution.started_at or loaded.execution.created_at,
        after=loaded.journal[cut - 1].position if cut else 0,
    )
    return [replace(row, execution=execution, run=run) for row in (first, *kept)]


def _note(
    loaded: LoadedExecution,
    origin: Origin,
    *,
    name: str,
    order: Order,
    run: int,
    at: datetime,
    after: int = 0,
) -> JournalRow:
    """The first row: who wanted the repair, when, of what, and what ``Origin`` is read from."""
    note = {
        "by": order.by,
        "asked_at": order.at.isoformat(),
        "of": f"{loaded.execution.workflow}/{loaded.execution.execution_id}",
        "run": loaded.execution.run,
        "from": after,
        "until": origin.until,
        "seed": origin.seed,
        "children": [[name, nth, id, of] for (name, nth, of), id in origin.children.items()],
    }
    return JournalRow(
        execution=loaded.execution.request_id,
        run=run,
        position=0,
        kind=JournalKind.REPAIRED,
        name=name,
        ordinal=0,
        at=at,
        payload=json.dumps(note).encode(),
    )
