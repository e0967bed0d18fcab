"""Which code executions that have not ended need: the versions they are pinned to, the patches.

Counted from stored rows; used by ``client``, ``outlast versions``, ``patches`` and ``doctor``.
Reads all executions that have not ended: for people, not for a hot path.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.cluster.served import serves, versions_in
from engine.core.status import Status

if TYPE_CHECKING:
    from collections.abc import Mapping

    from engine.storage.protocol import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionInfo:
    """One version of a workflow that is served, or that executions are pinned to.

    ``version`` is None for executions that no runner has taken up: they get the highest of the one
    that does. ``runners``: how many live ones have its code. ``live``: executions that have not
    ended, by status. ``unserved``: how many of them wait because the owner of their shard has not
    this code. ``misfits``: how many are blocked because their journal does not fit this code.
    """

    workflow: str
    version: int | None
    runners: int
    live: "Mapping[Status, int]"
    unserved: int = 0
    misfits: int = 0

    @property
    def executions(self) -> int:
        """How many executions have not ended."""
        return sum(self.live.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchInfo:
    """What executions that have not ended were answered by ``patched(change)``.

    ``unasked`` are those of the workflow that have not got there, or not been replayed since the
    change came. The old way can go when ``old`` and ``unasked`` are 0, or all that are ``unasked``
    have begun under code that asks.
    """

    workflow: str
    change: str
    new: int
    old: int
    unasked: int


async def versions(storage: "Storage", workflow: str | None = None) -> list[VersionInfo]:
    """Of one workflow or of all, by name and version."""
    runners = {row.id: row for row in await storage.runners() if row.died_at is None}
    served: Counter[tuple[str, int]] = Counter()
    for row in runners.values():
        for name, description in row.types.items():
            served.update((name, version) for version in versions_in(description))
    live: dict[tuple[str, int], Counter[Status]] = defaultdict(Counter)
    unserved: Counter[tuple[str, int]] = Counter()
    misfits: Counter[tuple[str, int]] = Counter()
    for each in await storage.standings():
        code = each.workflow, each.version
        live[code][each.status] += each.executions
        misfits[code] += each.misfits
        owner = None if each.runner is None else runners.get(each.runner)
        if owner is not None and not serves(owner.types, *code):
            unserved[code] += each.executions
    return [
        VersionInfo(
            workflow=name,
            version=version or None,
            runners=served[name, version],
            live=dict(live[name, version]),
            unserved=unserved[name, version],
            misfits=misfits[name, version],
        )
        for name, version in sorted({*served, *live})
        if workflow in (None, name)
    ]


async def patches(storage: "Storage", workflow: str | None = None) -> list[PatchInfo]:
    """Of one workflow or of all, by name and change."""
    answers: dict[tuple[str, str], Counter[bool]] = defaultdict(Counter)
    for each in await storage.patch_answers():
        answers[each.workflow, each.change][each.answer] += each.executions
    live: Counter[str] = Counter()
    for standing in await storage.standings() if answers else ():
        live[standing.workflow] += standing.executions
    return [
        PatchInfo(
            workflow=name,
            change=change,
            new=counts[True],
            old=counts[False],
            unasked=max(0, live[name] - counts[True] - counts[False]),
        )
        for (name, change), counts in sorted(answers.items())
        if workflow in (None, name)
    ]


def code_of(info: VersionInfo) -> str:
    """A version in words."""
    return info.workflow if info.version is None else f"{info.workflow} version {info.version}"


def troubles(infos: Sequence[VersionInfo]) -> list[tuple[str, str]]:
    """What executions wait for that is not there, each with what to do."""
    found: list[tuple[str, str]] = []
    for info in infos:
        what = code_of(info)
        if info.unserved:
            message = f"executions of {what} wait for an owner that serves it ({info.unserved})"
            fix = "let all runners of the group register it, or finish the deployment"
            found.append((message, fix))
        if info.misfits:
            message = f"executions of {what} are blocked, as it does not fit them ({info.misfits})"
            listed = f"'outlast ls -w {info.workflow} -s blocked'"
            fix = f"deploy code that fits, or guard the change with self.patched(); see {listed}"
            found.append((message, fix))
    return found
