"""Any order of saves, acquisitions, sweeps, flushes and crashes, against a model made of dicts.

No message is lost, none comes back after it was settled, the first exit wins, epochs only grow,
and what a flush holds is written together or not at all.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import asyncpg
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from engine.core.clock import SystemClock
from engine.core.errors import StorageUnavailable
from engine.core.ids import ShardId, Snowflake
from engine.core.status import Status
from engine.storage.memory import Fault, MemoryDatabase
from engine.storage.protocol import (
    BadBatch,
    Commit,
    InboxKind,
    LaneSession,
    SaveOutcome,
    SaveRequest,
)
from tests.eventually import eventually
from tests.storage.world import (
    ONE,
    TWO,
    Process,
    World,
    event,
    memory_world,
    message,
    next_id,
    postgres_world,
    run_key,
    start,
    step,
    success,
    sweep_of,
    update,
)

T = TypeVar("T")
SHARDS = (ONE, TWO)
JOURNAL = next_id()

shards = st.sampled_from(SHARDS)
lanes = st.integers(0, 1)
names = st.sampled_from("abc")
keys = st.none() | names


@dataclass
class Model:
    """What the storage should hold. ``inbox``: by shard, what was stored and not yet settled."""

    keys: dict[str, Snowflake] = field(default_factory=dict)
    finished: dict[Snowflake, bool] = field(default_factory=dict)
    inbox: dict[ShardId, list[Snowflake]] = field(default_factory=lambda: {ONE: [], TWO: []})
    exits: dict[Snowflake, bytes] = field(default_factory=dict)
    journal: list[int] = field(default_factory=list)
    epochs: dict[ShardId, int] = field(default_factory=lambda: {ONE: 0, TWO: 0})
    owner: dict[ShardId, int] = field(default_factory=dict)

    def expect(self, request: SaveRequest) -> SaveOutcome:
        if request.envelope.key in self.keys:
            return SaveOutcome.EXISTS
        if request.target is None:
            return SaveOutcome.CREATED
        run = self.keys.get(request.target)
        if run is None:
            return SaveOutcome.NO_TARGET
        return SaveOutcome.TARGET_FINISHED if self.finished[run] else SaveOutcome.CREATED

    def save(self, request: SaveRequest) -> None:
        """Store a request that is to be created."""
        id = request.envelope.request_id
        if request.envelope.key is not None:
            self.keys[request.envelope.key] = id
        if request.execution is not None:
            self.finished[id] = False
        self.inbox[request.envelope.address.shard].append(id)

    def settle(self, shard: ShardId, id: Snowflake, value: bytes) -> None:
        self.inbox[shard].remove(id)
        self.exits.setdefault(id, value)
        if id in self.finished:
            self.finished[id] = True


class StorageMachine(RuleBasedStateMachine):
    """Two runners with a lane each share two shards; clients save. Sessions end at any time."""

    def __init__(
        self,
        open_world: Callable[[], AbstractAsyncContextManager[World]],
        faults: MemoryDatabase | None,
    ) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.context = open_world()
        self.faults = faults
        self.model = Model()
        self.position = 0
        self.seqs: dict[int, Snowflake] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        """Whoever owns the shards next finds exactly what was not settled."""
        self.run(self._everything_is_found_by_the_next_owner())
        self.run(self.context.__aexit__(None, None, None))
        self.runner.close()

    @initialize()
    def begin(self) -> None:
        self.world = self.run(self.context.__aenter__())
        self.client: Process = self.run(self.world.process(register=False))
        self.processes: list[Process] = [self.run(self.world.process()) for _ in range(2)]
        self.lanes: list[LaneSession] = [self.run(each.lane()) for each in self.processes]

    # --- rules --------------------------------------------------------------------------------

    @rule(asked=st.lists(st.tuples(shards, keys), min_size=1, max_size=4))
    def save_messages(self, asked: list[tuple[ShardId, str | None]]) -> None:
        self._save([message(shard=shard, key=key) for shard, key in asked])

    @rule(shard=shards, name=names)
    def start_execution(self, shard: ShardId, name: str) -> None:
        self._save([start(name, shard=shard)])

    @rule(shard=shards, name=names, key=keys)
    def signal_execution(self, shard: ShardId, name: str, key: str | None) -> None:
        self._save([event(name, shard=shard, key=key)])

    @rule(lane=lanes, wanted=st.sets(shards, min_size=1))
    def acquire(self, lane: int, wanted: set[ShardId]) -> None:
        free = {shard for shard in wanted if shard not in self.model.owner}

        taken = self.run(self.lanes[lane].acquire(sorted(wanted)))

        assert taken == {shard: self.model.epochs[shard] + 1 for shard in free}
        self.model.epochs.update(taken)
        self.model.owner.update(dict.fromkeys(taken, lane))

    @rule(lane=lanes)
    def release(self, lane: int) -> None:
        held = self._held(lane)
        self.run(self.lanes[lane].release(held))
        for shard in held:
            del self.model.owner[shard]

    @rule(lane=lanes, left=st.integers(0, 2))
    def sweep(self, lane: int, left: int) -> None:
        held = self._held(lane)
        expected = {shard: self.model.inbox[shard][left:] for shard in held}
        in_flight = {id for shard in held for id in self.model.inbox[shard][:left]}
        flying = tuple(seq for seq, id in self.seqs.items() if id in in_flight)
        if held:
            swept = self.run(sweep_of(self.lanes[lane], *held, in_flight=flying, limit=1000))
            for shard in held:
                rows = [row for row in swept.rows if row.shard == shard]
                assert [row.envelope.request_id for row in rows] == expected[shard]
            assert [row.seq for row in swept.rows] == sorted(row.seq for row in swept.rows)
            assert {row.kind for row in swept.rows} <= {InboxKind.REQUEST}

    @rule(
        shard=shards,
        count=st.integers(0, 3),
        follow_up=st.none() | st.tuples(shards, keys),
        fault=st.none() | st.sampled_from(Fault),
    )
    def flush(
        self,
        shard: ShardId,
        count: int,
        follow_up: tuple[ShardId, str | None] | None,
        fault: Fault | None,
    ) -> None:
        lane = self.model.owner.get(shard)
        if lane is None:
            return
        commits, settled = self._commits(shard, count, follow_up)
        if fault is not None and self.faults is not None:
            self.faults.fail_next_flush(fault)
        else:
            fault = None
        try:
            self.run(self.lanes[lane].flush(commits))
        except BadBatch:
            assert fault in (Fault.REFUSED, Fault.LOCKED)
            return
        except StorageUnavailable:
            assert fault in (Fault.BEFORE_COMMIT, Fault.AFTER_COMMIT)
            self._open_again(lane)
            if fault is Fault.BEFORE_COMMIT:
                return
        self._committed(shard, commits, settled)

    @rule(shard=shards, count=st.integers(0, 2), turns=st.integers(0, 3))
    def flush_and_crash(self, shard: ShardId, count: int, turns: int) -> None:
        """The session ends somewhere in a flush. Whoever has the lock next sees how it ended."""
        lane = self.model.owner.get(shard)
        if lane is None:
            return
        commits, settled = self._commits(shard, count, (shard, None))
        position = self.position
        self.run(self._flush_and_terminate(lane, commits, turns))
        self._open_again(lane)
        taken = self.run(self._acquire_eventually(lane, shard))
        self.model.epochs[shard] = taken
        self.model.owner[shard] = lane
        history = self.run(self.client.storage.history(JOURNAL))
        if position in [row.position for row in history]:
            self._committed(shard, commits, settled)

    @rule(shard=shards)
    @precondition(lambda self: bool(self.model.journal))
    def flush_a_position_again(self, shard: ShardId) -> None:
        lane = self.model.owner.get(shard)
        if lane is None:
            return
        commits, _ = self._commits(shard, 2, (shard, None))
        commits.append(Commit(shard=shard, journal=[step(JOURNAL, self.model.journal[0])]))
        try:
            self.run(self.lanes[lane].flush(commits))
        except BadBatch:
            return
        raise AssertionError("a position was written twice")

    @rule(shard=shards, value=st.binary(max_size=3))
    @precondition(lambda self: bool(self.model.exits))
    def answer_again(self, shard: ShardId, value: bytes) -> None:
        lane = self.model.owner.get(shard)
        if lane is not None:
            replies = [success(id, value, sequence=1) for id in self.model.exits]
            flushed = self.run(self.lanes[lane].flush([Commit(shard=shard, replies=replies)]))
            assert flushed.replies == {}

    @rule(lane=lanes)
    def crash(self, lane: int) -> None:
        self.run(self._terminate(lane))
        self._open_again(lane)

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def the_first_exit_is_the_exit(self) -> None:
        stored = self.run(self.client.storage.replies(list(self.model.exits)))
        assert {reply.request_id: reply.payload for reply in stored} == self.model.exits
        assert len(stored) == len(self.model.exits)

    @invariant()
    def positions_are_those_written(self) -> None:
        history = self.run(self.client.storage.history(JOURNAL))
        assert [row.position for row in history] == sorted(self.model.journal)

    @invariant()
    def epochs_are_those_given(self) -> None:
        rows = {row.shard: row for row in self.run(self.client.storage.shards())}
        assert {shard: rows[shard].epoch for shard in SHARDS} == self.model.epochs
        for shard, lane in self.model.owner.items():
            assert rows[shard].runner == self.processes[lane].runner

    # --- how ------------------------------------------------------------------------------------

    def _save(self, requests: list[SaveRequest]) -> None:
        """Keys repeated in one batch go to one of those who ask, whichever that is."""
        for request, saved in zip(
            requests, self.run(self.client.storage.save(requests)), strict=True
        ):
            key = request.envelope.key
            if saved.outcome is SaveOutcome.CREATED:
                assert self.model.expect(request) is SaveOutcome.CREATED
                assert saved.seq is not None
                self.seqs[saved.seq] = saved.request_id
                self.model.save(request)
            elif key not in self.model.keys:
                assert saved.outcome is self.model.expect(request)
        for shard in SHARDS:
            place = {id: seq for seq, id in self.seqs.items()}
            self.model.inbox[shard].sort(key=lambda id: place[id])

    def _commits(
        self, shard: ShardId, count: int, follow_up: tuple[ShardId, str | None] | None
    ) -> tuple[list[Commit], list[Snowflake]]:
        """Commits that settle and answer the oldest rows, and write a journal row each."""
        place = {id: seq for seq, id in self.seqs.items()}
        settled = self.model.inbox[shard][:count]
        commits: list[Commit] = []
        for id in settled:
            commit = (
                update(id, Status.SUCCEEDED) if id in self.model.finished else Commit(shard=shard)
            )
            commit.shard = shard
            commit.settled = [place[id]]
            commit.replies = [success(id, b"%d" % id)]
            commits.append(commit)
        self.position += 1
        commits.append(Commit(shard=shard, journal=[step(JOURNAL, self.position)]))
        if follow_up is not None:
            to, key = follow_up
            commits[-1].requests = [message(shard=to, key=key)]
        return commits, settled

    def _committed(self, shard: ShardId, commits: list[Commit], settled: list[Snowflake]) -> None:
        """Take over into the model what a flush wrote; its seqs may not have come back."""
        for id in settled:
            self.model.settle(shard, id, b"%d" % id)
        self.model.journal += [row.position for commit in commits for row in commit.journal]
        for request in [each for commit in commits for each in commit.requests]:
            if self.model.expect(request) is SaveOutcome.CREATED:
                self.model.save(request)
                self.run(self._find_seq(request))

    async def _find_seq(self, request: SaveRequest) -> None:
        """Read the seq of a follow-up with a runner of its own, unless its shard is owned."""
        shard, id = request.envelope.address.shard, request.envelope.request_id
        lane = self.model.owner.get(shard)
        reader = self.lanes[0 if lane is None else lane]
        (row,) = [
            row
            for row in (await sweep_of(reader, shard, limit=1000)).rows
            if row.envelope.request_id == id
        ]
        self.seqs[row.seq] = id

    def _held(self, lane: int) -> list[ShardId]:
        return sorted(shard for shard, owner in self.model.owner.items() if owner == lane)

    async def _flush_and_terminate(self, lane: int, commits: list[Commit], turns: int) -> None:
        flushing = asyncio.get_running_loop().create_task(self.lanes[lane].flush(commits))
        for _ in range(turns):
            await asyncio.sleep(0)
        self.lanes[lane].terminate()
        try:
            await flushing
        except StorageUnavailable:
            return

    async def _terminate(self, lane: int) -> None:
        self.lanes[lane].terminate()

    def _open_again(self, lane: int) -> None:
        assert self.lanes[lane].closed
        lost = self._held(lane)
        for shard in lost:
            del self.model.owner[shard]
        self.lanes[lane] = self.run(self.processes[lane].lane())
        # The server may notice the end of a session a little later than its client.
        for shard in lost:
            self.model.epochs[shard] = self.run(self._acquire_eventually(lane, shard))
            self.model.owner[shard] = lane

    async def _acquire_eventually(self, lane: int, shard: ShardId) -> int:
        if self.model.owner.get(shard) == lane:
            return self.model.epochs[shard]

        async def taken() -> int | None:
            return (await self.lanes[lane].acquire([shard])).get(shard)

        epoch = await eventually(taken)
        assert epoch == self.model.epochs[shard] + 1
        return epoch or 0

    async def _everything_is_found_by_the_next_owner(self) -> None:
        for lane in self.lanes:
            await lane.close()
        self.model.owner.clear()
        successor = await self.world.process()
        self.lanes = [await successor.lane()]
        for shard in SHARDS:
            await self._acquire_eventually(0, shard)
            rows = (await sweep_of(self.lanes[0], shard, limit=1000)).rows
            assert [row.envelope.request_id for row in rows] == self.model.inbox[shard]
        await self.lanes[0].close()
        for name in "abc":
            found = await self.client.storage.find("Fulfil", name)
            assert (None if found is None else found.request_id) == self.model.keys.get(
                run_key(name)
            )


def test_memory_does_what_the_model_does() -> None:
    def machine() -> StorageMachine:
        database = MemoryDatabase(SystemClock())
        return StorageMachine(lambda: memory_world(database), database)

    run_state_machine_as_test(
        machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None)
    )


def test_postgres_does_what_the_model_does(dsn: str) -> None:
    async def truncate() -> None:
        connection = await asyncpg.connect(dsn)
        try:
            tables = await connection.fetch(
                "select format('%I.%I', schemaname, tablename) from pg_tables"
                " where schemaname = 'engine' and tablename <> 'schema_version'"
            )
            await connection.execute("truncate " + ", ".join(row[0] for row in tables))
        finally:
            await connection.close()

    def machine() -> StorageMachine:
        asyncio.run(truncate())
        return StorageMachine(lambda: postgres_world(dsn), None)

    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=8,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
