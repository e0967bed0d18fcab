"""The table ``entity_states`` of the in-memory database, and entities as people see them.

Changed by ``memory_rows`` on behalf of owners; read by ``memory``.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from heapq import nsmallest

from engine.core.clock import Clock
from engine.core.envelope import EnvelopeRequest
from engine.core.ids import ShardId, Snowflake
from engine.storage.entities import EntityFilter, EntityRow, StateWrite, StoredState
from engine.storage.memory_shard import MemoryShard

_Name = tuple[str, str]


class MemoryEntities:
    """States by type and id."""

    def __init__(self, clock: Clock, shards: Mapping[ShardId, MemoryShard]) -> None:
        self._clock = clock
        self._shards = shards
        self._states: dict[_Name, StoredState] = {}

    def write(self, shard: ShardId, state: StateWrite) -> None:
        """Store a state, unless a later one is stored."""
        name = state.entity_type, state.entity_id
        old = self._states.get(name)
        if old is None or old.version < state.version:
            self._states[name] = StoredState(
                entity_type=state.entity_type,
                entity_id=state.entity_id,
                shard=shard,
                version=state.version,
                payload=state.payload,
                saved_at=self._clock.now(),
            )

    def states(self, entities: Iterable[_Name]) -> dict[_Name, StoredState]:
        return {name: self._states[name] for name in entities if name in self._states}

    def page(
        self, filter: EntityFilter, limit: int, envelopes: Mapping[Snowflake, EnvelopeRequest]
    ) -> list[EntityRow]:
        """Those that have a state or something to do, by type and id, from ``filter.after`` on."""
        waiting: defaultdict[_Name, list[EnvelopeRequest]] = defaultdict(list)
        for shard in self._shards.values():
            for row in shard.messages():
                address = envelopes[row.request_id].address
                waiting[address.entity_type, address.entity_id].append(envelopes[row.request_id])
        names = {name for name in self._states.keys() | waiting.keys() if _passes(name, filter)}
        return [self._row(name, waiting.get(name, [])) for name in nsmallest(limit, names)]

    def _row(self, name: _Name, waiting: list[EnvelopeRequest]) -> EntityRow:
        state = self._states.get(name)
        shard = waiting[0].address.shard if state is None else state.shard
        return EntityRow(
            entity_type=name[0],
            entity_id=name[1],
            shard=shard,
            runner=self._shards[shard].runner,
            waiting=len(waiting),
            oldest=min((each.request_id for each in waiting), default=None),
            version=None if state is None else state.version,
            saved_at=None if state is None else state.saved_at,
        )


def _passes(name: _Name, filter: EntityFilter) -> bool:
    return (
        filter.entity_type in (None, name[0])
        and filter.entity_id in (None, name[1])
        and (filter.after is None or name > filter.after)
    )
