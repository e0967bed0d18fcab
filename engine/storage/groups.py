"""The shard groups a process knows: names, the numbers they are stored under, sizes.

Filled by ``postgres`` from ``shard_groups``; used wherever a row names a shard.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import asyncpg

from engine.core.errors import ConfigurationError
from engine.core.ids import ShardId

T = TypeVar("T")


class UnknownGroup(Exception):
    """A group this process has not heard of: read ``shard_groups`` again."""


async def once_known(read: Callable[[], T], learn: Callable[[], Awaitable[None]]) -> T:
    """What ``read`` makes of rows that may speak of a group made by another process since: then
    ``learn`` comes first."""
    try:
        return read()
    except UnknownGroup:
        await learn()
        return read()


class Groups:
    """Both directions between a group's name and its id. Groups are never renamed or resized."""

    __slots__ = ("_ids", "_names", "_sizes")

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._sizes: dict[str, int] = {}

    def learn(self, rows: Iterable[asyncpg.Record]) -> None:
        """Take over rows of the ``groups`` query."""
        for name, group_id, shards in rows:
            self._ids[name] = group_id
            self._names[group_id] = name
            self._sizes[name] = shards

    def __contains__(self, name: str) -> bool:
        return name in self._ids

    def size(self, name: str) -> int:
        try:
            return self._sizes[name]
        except KeyError:
            raise ConfigurationError(
                f"there is no shard group {name!r}: name it in the groups of a runner or client"
            ) from None

    def id(self, name: str) -> int:
        try:
            return self._ids[name]
        except KeyError:
            raise UnknownGroup(name) from None

    def shard(self, group_id: int, number: int) -> ShardId:
        try:
            return ShardId(self._names[group_id], number)
        except KeyError:
            raise UnknownGroup(str(group_id)) from None

    def columns(self, shards: Iterable[ShardId]) -> tuple[list[int], list[int]]:
        """The shards as two columns, group ids and numbers."""
        pairs = [(self.id(shard.group), shard.number) for shard in shards]
        return [group_id for group_id, _ in pairs], [number for _, number in pairs]
