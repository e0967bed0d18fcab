"""What a storage should hold, made of dicts: the model that the state machine compares it with."""

from dataclasses import dataclass, field, replace

from engine.core.ids import ShardId, Snowflake
from engine.storage.entities import StateWrite
from engine.storage.protocol import SUSPECT, SaveOutcome, SaveRequest, StreamPosition, Verdict
from tests.storage.world import ONE, TWO


@dataclass
class Model:
    """``inbox`` and ``interrupts``: by shard, the requests that were stored and not yet settled.
    ``runs`` are executions, each with whether it has finished; ``of_run`` their requests."""

    keys: dict[str, Snowflake] = field(default_factory=dict)
    requests: dict[Snowflake, SaveRequest] = field(default_factory=dict)
    runs: dict[Snowflake, bool] = field(default_factory=dict)
    of_run: dict[Snowflake, Snowflake] = field(default_factory=dict)
    inbox: dict[ShardId, list[Snowflake]] = field(default_factory=lambda: {ONE: [], TWO: []})
    interrupts: dict[ShardId, list[Snowflake]] = field(default_factory=lambda: {ONE: [], TWO: []})
    exits: dict[Snowflake, bytes] = field(default_factory=dict)
    dead: set[Snowflake] = field(default_factory=set)
    streams: dict[Snowflake, StreamPosition] = field(default_factory=dict)
    states: dict[tuple[str, str], StateWrite] = field(default_factory=dict)
    failures: dict[Snowflake, int] = field(default_factory=dict)
    run_failures: dict[Snowflake, int] = field(default_factory=dict)
    on_trial: set[Snowflake] = field(default_factory=set)
    accused: set[Snowflake] = field(default_factory=set)
    journal: list[int] = field(default_factory=list)
    epochs: dict[ShardId, int] = field(default_factory=lambda: {ONE: 0, TWO: 0})
    owner: dict[ShardId, int] = field(default_factory=dict)

    # --- requests -----------------------------------------------------------------------------

    def expect(self, request: SaveRequest) -> SaveOutcome:
        if request.envelope.key in self.keys:
            return SaveOutcome.EXISTS
        if request.target is None:
            return SaveOutcome.CREATED
        run = self.keys.get(request.target)
        if run is None:
            return SaveOutcome.NO_TARGET
        return SaveOutcome.TARGET_FINISHED if self.runs[run] else SaveOutcome.CREATED

    def save(self, request: SaveRequest) -> None:
        """Store a request that is to be created."""
        id = request.envelope.request_id
        if request.envelope.key is not None:
            self.keys[request.envelope.key] = id
        if request.execution is not None:
            self.runs[id] = False
            self.of_run[id] = id
        elif request.target is not None:
            self.of_run[id] = self.keys[request.target]
        self.requests[id] = request
        self.inbox[request.envelope.address.shard].append(id)

    def settle(self, shard: ShardId, id: Snowflake, value: bytes) -> None:
        """Delete the row of a request that gets its exit."""
        self._forget(shard, id)
        self.exits.setdefault(id, value)
        if id in self.runs:
            self.runs[id] = True

    def bury(self, shard: ShardId, id: Snowflake, error: bytes) -> None:
        self.settle(shard, id, error)
        self.dead.add(id)

    def revive(self, id: Snowflake) -> None:
        self.dead.discard(id)
        del self.exits[id]
        self.inbox[self.shard(id)].append(id)

    def interrupt(self, id: Snowflake) -> bool:
        """Whether there is something to interrupt."""
        if id not in self.requests or id in self.exits:
            return False
        self.interrupts[self.shard(id)].append(id)
        return True

    def shard(self, id: Snowflake) -> ShardId:
        return self.requests[id].envelope.address.shard

    def receiver(self, id: Snowflake) -> str | Snowflake:
        """The entity, or the execution, that has to take the request."""
        return self.of_run.get(id, self.requests[id].envelope.address.entity_id)

    def waiting(self) -> dict[tuple[str, str], list[Snowflake]]:
        """What entities have to do."""
        found: dict[tuple[str, str], list[Snowflake]] = {}
        for id in [id for ids in self.inbox.values() for id in ids if id not in self.of_run]:
            address = self.requests[id].envelope.address
            found.setdefault((address.entity_type, address.entity_id), []).append(id)
        return found

    # --- streams and states -------------------------------------------------------------------

    def position(self, id: Snowflake) -> StreamPosition:
        return self.streams.get(id, StreamPosition())

    def produce(self, id: Snowflake, count: int) -> None:
        at = self.position(id)
        self.streams[id] = replace(at, next_sequence=at.next_sequence + count)

    def acknowledge(self, id: Snowflake, sequence: int) -> None:
        if id in self.streams:
            at = self.streams[id]
            taken = max(at.acked, min(sequence, at.next_sequence - 1))
            self.streams[id] = replace(at, acked=taken)

    def write(self, state: StateWrite) -> None:
        name = state.entity_type, state.entity_id
        if name not in self.states or self.states[name].version < state.version:
            self.states[name] = state

    # --- failures -----------------------------------------------------------------------------

    def fail(self, id: Snowflake) -> None:
        self.failures[id] = self.failures.get(id, 0) + 1
        self.on_trial.discard(id)

    def acquired(self, shard: ShardId, epoch: int, lane: int, *, lost: bool) -> None:
        """``lost``: by a runner that is another, to whoever has it now."""
        self.epochs[shard] = epoch
        self.owner[shard] = lane
        if lost:
            self._lose(shard)
        else:
            self.on_trial.difference_update(self.inbox[shard])
            self.accused.difference_update(self._accused(shard))

    def judge(self, run: Snowflake, verdict: Verdict) -> None:
        if verdict is Verdict.ON_TRIAL:
            self.accused.add(run)
        elif verdict is Verdict.ACQUITTED:
            self.accused.discard(run)
            self.run_failures.pop(run, None)

    def _accused(self, shard: ShardId) -> list[Snowflake]:
        """The executions on trial there that may have been in hand."""
        return [id for id in self.accused if self.shard(id) == shard and not self.runs[id]]

    def _lose(self, shard: ShardId) -> None:
        for id in self.inbox[shard]:
            suspect = self.failures.get(id, 0) >= SUSPECT
            if id in self.on_trial or (id not in self.of_run and not suspect):
                self.fail(id)
        rows = {self.of_run[id] for id in self.inbox[shard] if id in self.of_run}
        rows.update(self._accused(shard))
        rows.update(id for id in self.interrupts[shard] if id in self.runs)
        for run in rows:
            self._fail_run(run)

    def _fail_run(self, run: Snowflake) -> None:
        """It never gets on: no row of its journal is written here."""
        failures = self.run_failures.get(run, 0)
        if not self.runs[run] and (failures < SUSPECT or run in self.accused):
            self.run_failures[run] = failures + 1
        self.accused.discard(run)

    def _forget(self, shard: ShardId, id: Snowflake) -> None:
        self.inbox[shard].remove(id)
        self.failures.pop(id, None)
        self.on_trial.discard(id)
