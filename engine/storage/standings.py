"""How many executions that have not ended stand where, and what ``patched()`` has told them.

Counted by ``storage`` for ``engine.versions``, which says what code they need.
"""

from dataclasses import dataclass
from typing import Final

from engine.core.ids import RunnerId
from engine.core.status import Status

MISFIT: Final = "its code does not fit its journal: "
"""What the reason of an execution that is blocked for that begins with, and no other's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Executions of one workflow, version, status and owner. ``version`` is ``UNDECIDED`` for those
    that no runner has taken up. ``misfits``: how many of them are blocked since their journal does
    not fit their code."""

    workflow: str
    version: int
    status: Status
    runner: RunnerId | None
    executions: int
    misfits: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchAnswer:
    """So many executions of a workflow were told by ``patched(change)`` that it is so, or not."""

    workflow: str
    change: str
    answer: bool
    executions: int
