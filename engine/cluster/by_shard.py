"""What a runner keeps of its shards, found by shard and key.

Used by ``cluster.entity_host``: when hundreds of shards are given away at once, each looks only at
what is its own.
"""

from collections.abc import Hashable
from typing import Generic, TypeVar

from engine.cluster.shard import OwnedShard

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class ByShard(Generic[K, V]):
    """A value for each shard and key; those of one shard are in the order they came in."""

    __slots__ = ("_shards",)

    def __init__(self) -> None:
        self._shards: dict[OwnedShard, dict[K, V]] = {}

    def __len__(self) -> int:
        return sum(len(values) for values in self._shards.values())

    def get(self, shard: OwnedShard, key: K) -> V | None:
        values = self._shards.get(shard)
        return None if values is None else values.get(key)

    def put(self, shard: OwnedShard, key: K, value: V) -> None:
        self._shards.setdefault(shard, {})[key] = value

    def take(self, shard: OwnedShard, key: K) -> V | None:
        """Remove and give what is there, if anything."""
        values = self._shards.get(shard)
        if values is None:
            return None
        value = values.pop(key, None)
        if not values:
            del self._shards[shard]
        return value

    def of(self, shard: OwnedShard) -> list[V]:
        """All of one shard, as they are now."""
        return list(self._shards.get(shard, {}).values())

    def keys_of(self, shard: OwnedShard) -> list[K]:
        return list(self._shards.get(shard, {}))
