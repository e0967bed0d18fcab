"""Which types the live runners serve, and in which shard group: what a sender needs to know of a
type whose class it does not have.

Read from the runners' own rows, which say the kind and the group of each type.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from engine.core.ids import RunnerId
from engine.storage.protocol import UNDECIDED, RunnerRow

Kind = Literal["workflow", "entity", "queue", "singleton", "cron"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One type. ``by`` are the live runners that have it and take shards of its group."""

    kind: Kind
    group: str
    by: tuple[RunnerId, ...] = ()


def described(kind: Kind, group: str, versions: Iterable[int] = ()) -> str:
    """A type as a runner's row has it; of a workflow with the versions it has the code of."""
    numbers = ",".join(str(version) for version in sorted(versions))
    return f"{kind}:{group}:{numbers}" if numbers else f"{kind}:{group}"


def serves(types: Mapping[str, str], workflow: str, version: int) -> bool:
    """Whether a runner of these types has the code of a version; of any, if it is undecided."""
    if workflow not in types:
        return False
    versions = versions_in(types[workflow])
    return version == UNDECIDED or not versions or version in versions


def versions_in(description: str) -> tuple[int, ...]:
    """The versions of a workflow that a runner has; none where its row does not say."""
    _, _, numbers = (*description.split(":"), "", "")[:3]
    return tuple(int(number) for number in numbers.split(",") if number.isdigit())


def served(runners: Iterable[RunnerRow]) -> Mapping[str, Served]:
    """All types of live runners, by name. Where they differ on the group, that of most of them."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    by: dict[tuple[str, str], list[RunnerId]] = defaultdict(list)
    for row in runners:
        for name, description in row.types.items() if row.died_at is None else ():
            kind, group = (*description.split(":"), "")[:2]
            if kind in get_args(Kind) and group:
                plain = f"{kind}:{group}"
                found[name][plain] += 1
                if group in row.groups:
                    by[name, plain].append(row.id)
    return {
        name: _served(description, by[name, description])
        for name, descriptions in found.items()
        for description, _ in descriptions.most_common(1)
    }


def _served(description: str, by: list[RunnerId]) -> Served:
    kind, _, group = description.partition(":")
    return Served(kind=cast("Kind", kind), group=group, by=tuple(by))
