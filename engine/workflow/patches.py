"""The answers of ``patched()`` in one run: which changes of the code it has taken the new way past.

Read from the run's journal by ``workflow.body``; what is asked for the first time goes back into
the journal by ``workflow.incoming``.
"""

import json
from typing import Final

from engine.core.journal import JournalKind, JournalRow
from engine.storage.protocol import UNDECIDED, LoadedExecution

_ANSWERS: Final = {True: b"true", False: b"false"}


class Patches:
    """``replaying``: what the body does now it has done before, under code that may have been
    another. ``asked`` are the changes whose answers are to be journaled."""

    __slots__ = (
        "_answers",
        "_copied_until",
        "asked",
        "replaying",
    )

    def __init__(self, loaded: LoadedExecution) -> None:
        self._copied_until = _copied_until(loaded)
        self.replaying: bool = self._copied_until != 0
        self.asked: list[str] = []
        self._answers: dict[str, bool] = {
            row.name: row.payload == _ANSWERS[True]
            for row in loaded.journal
            if row.kind is JournalKind.PATCHED
        }

    def pass_by(self, row: JournalRow) -> None:
        """A row is about to be replayed: what follows from the last that a run has copied, if it
        has none of its own, has not been seen before."""
        if row.position == self._copied_until:
            self.replaying = False

    def __getitem__(self, change: str) -> bool | None:
        """What was answered; None when nobody has asked."""
        return self._answers.get(change)

    def ask(self, change: str) -> bool:
        """The answer, from now on always the same.

        INVARIANT old-way-unless-first: what a run of the old code may have done behind this point
        leaves no trace before it ends (a step that runs, a timer), so that only what comes after
        the journal, and after what follows from its last row, is known to be reached for the first
        time. A new answer is in one flush with the row it follows from, or before any command.
        """
        answer = self._answers.get(change)
        if answer is None:
            answer = self._answers[change] = not self.replaying
            self.asked.append(change)
        return answer

    def stored(self, change: str) -> bytes:
        """An answer as it is journaled."""
        return _ANSWERS[self._answers[change]]


def _copied_until(loaded: LoadedExecution) -> int | None:
    """The position up to which a run has what another had done, if it has done nothing itself:
    0 for one without such a past. None for one that has begun."""
    first = loaded.journal[0] if loaded.journal else None
    if first is None or first.kind is not JournalKind.REPAIRED:
        return 0 if loaded.execution.version == UNDECIDED else None
    last = loaded.journal[-1].position
    return last if last <= json.loads(first.payload)["until"] else None
