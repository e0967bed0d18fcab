"""Names of things: entity types and ids, shards, runners, and the request id.

A request id is a snowflake: sortable by time, unique across every process that holds a machine id
of its own. Machine ids come from ``storage`` as leases; request ids go into envelopes.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, NewType
from uuid import UUID

from engine.core.errors import StorageUnavailable

EntityType = NewType("EntityType", str)
EntityId = NewType("EntityId", str)
RunnerId = NewType("RunnerId", UUID)
Snowflake = NewType("Snowflake", int)

SNOWFLAKE_EPOCH = datetime(2025, 1, 1, tzinfo=UTC)
MACHINE_IDS = 1 << 10
_SEQUENCES = 1 << 12
_EPOCH_MS = int(SNOWFLAKE_EPOCH.timestamp() * 1000)


class ShardId(NamedTuple):
    """One shard: the group it belongs to and its number there, 1 to the group's size.

    >>> str(ShardId("default", 7))
    'default:7'
    """

    group: str
    number: int

    def __str__(self) -> str:
        return f"{self.group}:{self.number}"


@dataclass(frozen=True, slots=True)
class EntityAddress:
    """Where a message goes: an entity of a type, and the shard that entity lives on."""

    shard: ShardId
    entity_type: EntityType
    entity_id: EntityId

    def __str__(self) -> str:
        return f"{self.entity_type}/{self.entity_id}"


def shard_of(group: str, shards: int, entity_type: str, entity_id: str) -> ShardId:
    """The shard of an entity. The same in every process and version: stored rows depend on it."""
    name = f"{entity_type}/{entity_id}".encode(errors="surrogatepass")
    return ShardId(group, zlib.crc32(name) % shards + 1)


def entity_key(entity_type: str, entity_id: str) -> int:
    """A number that stands for an entity in its inbox rows: 32 bits, the same in every process and
    version, and never that of an execution. Two entities of one number wait for each other at
    times, no more."""
    return zlib.crc32(f"{entity_type}/{entity_id}".encode(errors="surrogatepass"))


def snowflake_time(request_id: int) -> datetime:
    """When the request id was made, to the millisecond, by its maker's database-aligned clock."""
    return SNOWFLAKE_EPOCH + timedelta(milliseconds=request_id >> 22)


def first_snowflake(at: datetime) -> Snowflake:
    """The least request id of that millisecond, or of the first there is."""
    milliseconds = (at - SNOWFLAKE_EPOCH) // timedelta(milliseconds=1)
    return Snowflake(max(0, milliseconds) << 22)


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineLease:
    """The right to make snowflakes with one machine id until a time of the generator's clock."""

    machine: int
    until: datetime


class SnowflakeGenerator:
    """Makes request ids: 42 bits of milliseconds since 2025, 10 of machine, 12 of sequence.

    Ids of one generator only grow, also when the clock steps back or 4,096 are made in a
    millisecond (it then borrows from the next). Past its lease it refuses, since another process
    may hold the machine id by then: the lease is checked with the reading the id is made of.
    """

    __slots__ = ("_last", "_lease", "_now")

    def __init__(self, *, now: Callable[[], datetime], lease: MachineLease | None = None) -> None:
        self._now = now
        self._lease = lease
        self._last = 0

    @property
    def lease(self) -> MachineLease | None:
        return self._lease

    def renew(self, lease: MachineLease) -> None:
        """Go on under a new lease, of the same machine id or another."""
        if self._lease is not None and self._lease.machine != lease.machine:
            # In the same millisecond a lesser machine id would make lesser ids.
            self._last |= _SEQUENCES - 1
        self._lease = lease

    def next(self) -> Snowflake:
        """A new id; ``StorageUnavailable`` when the machine id's lease has run out."""
        now = self._now()
        lease = self._lease
        milliseconds = int(now.timestamp() * 1000) - _EPOCH_MS
        slot = max(milliseconds * _SEQUENCES, self._last + 1)
        made_at = slot // _SEQUENCES
        if lease is None or now >= lease.until or made_at >= _milliseconds(lease.until):
            raise StorageUnavailable(
                "the lease of this process's machine id has run out, so it makes no request ids;"
                " it is renewed as soon as the database answers again"
            )
        self._last = slot
        return Snowflake(made_at << 22 | lease.machine << 12 | slot % _SEQUENCES)


def _milliseconds(when: datetime) -> int:
    return int(when.timestamp() * 1000) - _EPOCH_MS
