"""Who processes a queue's items: the shards of each live runner of a group.

Follows the views of ``membership``; asked by the dispatchers. It only says where to send an item:
whoever owns the shard by then processes it.
"""

from collections.abc import Callable, Mapping, Sequence

from engine.cluster.assignment import Candidate, assign
from engine.cluster.view import View
from engine.core.ids import RunnerId, ShardId


class Roster:
    """``changed`` are called when the runners are others."""

    def __init__(self, shards_in: Callable[[str], int]) -> None:
        self.changed: list[Callable[[], None]] = []
        self._shards_in = shards_in
        self._view: View | None = None
        self._ground: object = None
        self._owners: dict[str, Mapping[ShardId, RunnerId]] = {}

    def follow(self, view: View) -> None:
        types = tuple((row.id, tuple(sorted(row.types))) for row in view.runners)
        ground = view.electorate, view.silent, types, _crowded(view)
        if ground != self._ground:
            self._view, self._ground = view, ground
            self._owners.clear()
            for changed in self.changed:
                changed()

    def owner(self, shard: ShardId) -> RunnerId | None:
        """Whom the shard is given to by the latest view."""
        return self._of(shard.group).get(shard)

    def shards(self, group: str, type: str) -> Mapping[RunnerId, Sequence[int]]:
        """The shards of those who serve a type and are heard of, without those who are crowded
        while others are not; empty before the first view."""
        view = self._view
        if view is None:
            return {}
        serving = {row.id for row in view.runners if type in row.types} - view.silent
        serving = serving - _crowded(view) or serving
        found: dict[RunnerId, list[int]] = {}
        for shard, runner in self._of(group).items():
            if runner in serving:
                found.setdefault(runner, []).append(shard.number)
        return found

    def _of(self, group: str) -> Mapping[ShardId, RunnerId]:
        if self._view is None:
            return {}
        if group not in self._owners:
            rows = self._view.candidates(group)
            shards = [ShardId(group, n) for n in range(1, self._shards_in(group) + 1)]
            candidates = [Candidate(id=row.id, weight=row.weight) for row in rows]
            self._owners[group] = assign(shards, candidates)
        return self._owners[group]


def _crowded(view: View) -> frozenset[RunnerId]:
    return frozenset(row.id for row in view.runners if row.load is not None and row.load.crowded)
