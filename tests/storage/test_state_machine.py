"""Any order of saves, acquisitions, sweeps, flushes, crashes and whatever else two runners and
their clients do, against a model made of dicts.

No message is lost, none comes back after it was settled, the first exit wins, epochs only grow,
what a flush holds is written together or not at all, no chunk is lost or comes back, a state never
goes back, and failures are counted against what was in hand.
"""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
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
from engine.core.ids import ShardId, Snowflake, entity_key
from engine.core.reply import ReplyKind
from engine.core.status import Status
from engine.storage.entities import DeadFilter, EntityFilter, StateWrite
from engine.storage.memory import Fault, MemoryDatabase
from engine.storage.protocol import (
    BadBatch,
    Commit,
    InboxKind,
    InboxRow,
    LaneSession,
    SaveOutcome,
    SaveRequest,
    Verdict,
)
from tests.eventually import eventually
from tests.storage.model import Model
from tests.storage.world import (
    ONE,
    TWO,
    Process,
    World,
    ack,
    chunk,
    defect,
    event,
    interrupt,
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
places = st.integers(0, 20)
versions = st.lists(st.tuples(names, st.integers(1, 6)), max_size=3)


owning = precondition(lambda self: bool(self.model.owner))


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
        self.world = self.run(self.context.__aenter__())
        self.lanes: list[LaneSession] = []
        self.faults = faults
        self.model = Model()
        self.position = 0
        self.seqs: dict[int, Snowflake] = {}

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def teardown(self) -> None:
        """Whoever owns the shards next finds exactly what was not settled."""
        try:
            self.run(self._everything_is_found_by_the_next_owner())
        finally:
            self.run(self.context.__aexit__(None, None, None))
            self.runner.close()

    @initialize()
    def begin(self) -> None:
        self.client: Process = self.run(self.world.process(register=False))
        self.processes: list[Process] = [self.run(self.world.process()) for _ in range(2)]
        self.lanes = [self.run(each.lane()) for each in self.processes]

    # --- rules --------------------------------------------------------------------------------

    @rule(asked=st.lists(st.tuples(shards, keys, names), min_size=1, max_size=4))
    def save_messages(self, asked: list[tuple[ShardId, str | None, str]]) -> None:
        self._save([message(shard=shard, key=key, entity=name) for shard, key, name in asked])

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
        for shard, epoch in taken.items():
            self.model.acquired(shard, epoch, lane, lost=False)

    @rule(lane=lanes)
    def release(self, lane: int) -> None:
        held = self._held(lane)
        self.run(self.lanes[lane].release(held))
        for shard in held:
            del self.model.owner[shard]

    @rule(lane=lanes, left=st.integers(0, 2), held=st.sets(names), hold_runs=st.booleans())
    def sweep(self, lane: int, left: int, held: set[str], hold_runs: bool) -> None:
        mine = self._held(lane)
        in_flight = {id for shard in mine for id in self.model.inbox[shard][:left]}
        flying = tuple(seq for seq, id in self.seqs.items() if id in in_flight)
        runs = set(self.model.runs) if hold_runs else set[Snowflake]()
        numbers = (*(entity_key("Stock", name) for name in held), *runs)
        if mine:
            swept = self.run(
                sweep_of(self.lanes[lane], *mine, in_flight=flying, held=numbers, limit=1000)
            )
            for shard in mine:
                expected = [
                    id
                    for id in self.model.inbox[shard][left:]
                    if self.model.receiver(id) not in held | runs
                ]
                self._check_rows([row for row in swept.rows if row.shard == shard], expected)
            assert [row.seq for row in swept.rows] == sorted(row.seq for row in swept.rows)

    @owning
    @rule(
        shard=shards,
        count=st.integers(0, 3),
        follow_up=st.none() | st.tuples(shards, keys),
        states=versions,
        fault=st.none() | st.sampled_from(Fault),
    )
    def flush(
        self,
        shard: ShardId,
        count: int,
        follow_up: tuple[ShardId, str | None] | None,
        states: list[tuple[str, int]],
        fault: Fault | None,
    ) -> None:
        shard, lane = self._owned(shard)
        commits, settled = self._commits(shard, count, follow_up, states)
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

    @owning
    @rule(shard=shards, count=st.integers(0, 2), states=versions, turns=st.integers(0, 3))
    def flush_and_crash(
        self, shard: ShardId, count: int, states: list[tuple[str, int]], turns: int
    ) -> None:
        """The session ends somewhere in a flush. Whoever has the lock next sees how it ended."""
        shard, lane = self._owned(shard)
        commits, settled = self._commits(shard, count, (shard, None), states)
        position = self.position
        self.run(self._flush_and_terminate(lane, commits, turns))
        self._open_again(lane)
        history = self.run(self.client.storage.history(JOURNAL))
        if position in [row.position for row in history]:
            self._committed(shard, commits, settled)

    @precondition(lambda self: self.model.owner and self.model.journal)
    @rule(shard=shards)
    def flush_a_position_again(self, shard: ShardId) -> None:
        shard, lane = self._owned(shard)
        commits, _ = self._commits(shard, 2, (shard, None), [("a", 9)])
        commits.append(Commit(shard=shard, journal=[step(JOURNAL, self.model.journal[0])]))
        try:
            self.run(self.lanes[lane].flush(commits))
        except BadBatch:
            return
        raise AssertionError("a position was written twice")

    @precondition(lambda self: self.model.owner and self.model.exits)
    @rule(shard=shards, value=st.binary(max_size=3))
    def answer_again(self, shard: ShardId, value: bytes) -> None:
        shard, lane = self._owned(shard)
        replies = [success(id, value, sequence=1) for id in self.model.exits]
        flushed = self.run(self.lanes[lane].flush([Commit(shard=shard, replies=replies)]))
        assert flushed.replies == {}

    @rule(lane=lanes)
    def crash(self, lane: int) -> None:
        self.run(self._terminate(lane))
        self._open_again(lane)

    @rule(loser=lanes, tried=st.sets(places, max_size=2))
    def take_over(self, loser: int, tried: set[int]) -> None:
        """A runner is lost, perhaps in a trial; the other takes its shards with what it had in
        hand."""
        lost = self._held(loser)
        for shard in lost:
            self._count(shard, loser, failed=set(), tried=tried)
        self.run(self._terminate(loser))
        self.lanes[loser] = self.run(self.processes[loser].lane())
        for shard in lost:
            del self.model.owner[shard]
            epoch = self.run(self._acquire_eventually(1 - loser, shard))
            self.model.acquired(shard, epoch, 1 - loser, lost=True)

    @owning
    @rule(shard=shards, failed=st.sets(places, max_size=3), tried=st.sets(places, max_size=3))
    def count_failures(self, shard: ShardId, failed: set[int], tried: set[int]) -> None:
        shard, lane = self._owned(shard)
        self._count(shard, lane, failed=failed, tried=tried)

    @precondition(lambda self: bool(self.model.requests))
    @rule(chosen=st.lists(places, min_size=1, max_size=4))
    def interrupt(self, chosen: list[int]) -> None:
        """Queued, answered, unknown, or one of them twice: whatever the places say."""
        asked = [self._choose(place) for place in chosen]
        ids = [request.envelope.request_id for request in asked]
        stores = {id: self.model.interrupt(id) for id in dict.fromkeys(ids)}

        stored = self.run(self.client.storage.interrupt([interrupt(each) for each in asked]))

        assert list(stored) == [stores[id] for id in ids]

    @rule(name=names, verdict=st.sampled_from(Verdict))
    def judge(self, name: str, verdict: Verdict) -> None:
        """The owner of an execution suspects it, or not any more."""
        run = self.model.keys.get(run_key(name))
        if run is None or self.model.runs[run]:
            return
        shard = self.model.shard(run)
        lane = self.model.owner.get(shard)
        if lane is None:
            return
        judged = update(run, Status.RUNNING)
        assert judged.execution is not None
        judged.execution = replace(judged.execution, verdict=verdict)
        judged.shard = shard
        self.run(self.lanes[lane].flush([judged]))
        self.model.judge(run, verdict)

    @owning
    @rule(shard=shards, count=st.integers(1, 3))
    def settle_interrupts(self, shard: ShardId, count: int) -> None:
        shard, lane = self._owned(shard)
        rows = self.run(sweep_of(self.lanes[lane], shard, limit=1000)).rows
        settled = [row for row in rows if row.kind is InboxKind.INTERRUPT][:count]
        commit = Commit(shard=shard, settled=[row.seq for row in settled])
        self.run(self.lanes[lane].flush([commit]))
        for row in settled:
            self.model.interrupts[shard].remove(row.envelope.request_id)

    @owning
    @rule(shard=shards, place=places, count=st.integers(1, 5))
    def produce(self, shard: ShardId, place: int, count: int) -> None:
        """The next chunks of a request that has no exit yet."""
        shard, lane = self._owned(shard)
        inbox = self.model.inbox[shard]
        if not inbox:
            return
        request = self.model.requests[inbox[place % len(inbox)]]
        first = self.model.position(request.envelope.request_id).next_sequence
        chunks = [chunk(request, at, b"%d" % at) for at in range(first, first + count)]
        self.run(self.lanes[lane].flush([Commit(shard=shard, replies=chunks)]))
        self.model.produce(request.envelope.request_id, count)

    @precondition(lambda self: bool(self.model.streams))
    @rule(
        acks=st.lists(st.tuples(places, st.integers(-1, 12)), max_size=2),
        stream=st.tuples(places, st.integers(-1, 12)),
        wait=st.booleans(),
    )
    def acknowledge(self, acks: list[tuple[int, int]], stream: tuple[int, int], wait: bool) -> None:
        """Streams or what is none, before the last chunk or behind it, again or back."""
        asked = [ack(self._choose(place), sequence) for place, sequence in acks]
        streams = list(self.model.streams)
        chosen = self.model.requests[streams[stream[0] % len(streams)]]
        asked.append(ack(chosen, stream[1]))
        taken = self.run(self.client.storage.acknowledge(asked, wait=wait))
        for each in asked:
            self.model.acknowledge(each.request_id, each.sequence)
        assert taken == {
            each.request_id: self.model.position(each.request_id).acked for each in asked
        }

    @owning
    @rule(shard=shards, place=places)
    def bury(self, shard: ShardId, place: int) -> None:
        shard, lane = self._owned(shard)
        messages = [id for id in self.model.inbox[shard] if id not in self.model.of_run]
        if not messages:
            return
        id = messages[place % len(messages)]
        sequence = self.model.position(id).next_sequence
        exit = defect(self.model.requests[id], sequence=sequence, message=str(id))
        commit = Commit(shard=shard, replies=[exit], settled=[self._places()[id]])
        self.run(self.lanes[lane].flush([commit]))
        self.model.bury(shard, id, exit.payload)

    @precondition(lambda self: bool(self.model.dead))
    @rule(chosen=st.lists(places, max_size=3), place=places)
    def revive(self, chosen: list[int], place: int) -> None:
        """A dead letter, and others that may be none."""
        asked = list({self._choose(each).envelope.request_id for each in chosen})
        asked.append(sorted(self.model.dead)[place % len(self.model.dead)])
        dead = [id for id in dict.fromkeys(asked) if id in self.model.dead]

        shards = self.run(self.client.storage.revive(asked))

        assert set(shards) == {self.model.shard(id) for id in dead}
        for id in dead:
            self.model.revive(id)
            self.run(self._find_seq(id))

    @rule()
    def look(self) -> None:
        self.run(self._look())

    # --- what always holds ----------------------------------------------------------------------

    @invariant()
    def the_first_exit_is_the_exit_and_no_chunk_is_lost(self) -> None:
        known = list(self.model.exits.keys() | self.model.streams.keys())
        replies = self.run(self.client.storage.replies(known))
        exits = [reply for reply in replies if reply.kind is not ReplyKind.CHUNK]
        assert {reply.request_id: reply.payload for reply in exits} == self.model.exits
        assert len(exits) == len(self.model.exits)
        for id in known:
            at = self.model.position(id)
            chunks = list(range(at.acked + 1, at.next_sequence))
            ended = [at.next_sequence] if id in self.model.exits else []
            assert [each.sequence for each in replies if each.request_id == id] == chunks + ended
        positions = self.run(self.client.storage.streams(known))
        assert positions == {id: self.model.position(id) for id in known}

    @invariant()
    def states_are_the_latest_written(self) -> None:
        stored = self.run(self.client.storage.states(list(self.model.states)))
        assert {name: (each.version, each.payload) for name, each in stored.items()} == {
            name: (each.version, each.payload) for name, each in self.model.states.items()
        }

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
        place = self._places()
        for shard in SHARDS:
            self.model.inbox[shard].sort(key=lambda id: place[id])

    def _count(self, shard: ShardId, lane: int, *, failed: set[int], tried: set[int]) -> None:
        inbox = self.model.inbox[shard]
        failing = sorted({inbox[at % len(inbox)] for at in failed} if inbox else ())
        trying = sorted({inbox[at % len(inbox)] for at in tried} if inbox else ())
        place = self._places()
        commit = Commit(
            shard=shard,
            failed=[place[id] for id in failing],
            tried=[place[id] for id in trying],
        )
        self.run(self.lanes[lane].flush([commit]))
        for id in failing:
            self.model.fail(id)
        self.model.on_trial.update(trying)

    def _owned(self, shard: ShardId) -> tuple[ShardId, int]:
        """The shard if somebody owns it, else another, and the lane of its owner."""
        owned = shard if shard in self.model.owner else next(iter(self.model.owner))
        return owned, self.model.owner[owned]

    def _places(self) -> dict[Snowflake, int]:
        """The row each request has, or had last."""
        return {id: seq for seq, id in self.seqs.items()}

    def _choose(self, place: int) -> SaveRequest:
        """One of the requests that were ever stored, or one that never was."""
        known = [*self.model.requests.values(), message()]
        return known[place % len(known)]

    async def _look(self) -> None:
        """Entities, dead letters and executions as people see them."""
        storage = self.client.storage
        waiting = self.model.waiting()
        rows = await storage.entities(EntityFilter(), limit=1000)
        names = sorted(waiting.keys() | self.model.states.keys())
        assert [(row.entity_type, row.entity_id) for row in rows] == names
        for row, name in zip(rows, names, strict=True):
            assert row.waiting == len(waiting.get(name, []))
            assert row.oldest == min(waiting.get(name, []), default=None)
        letters = await storage.dead_letters(DeadFilter(), limit=1000)
        assert [each.request_id for each in letters] == sorted(self.model.dead, reverse=True)
        for loaded in await storage.load(list(self.model.runs)):
            id = loaded.execution.request_id
            assert loaded.execution.failures == self.model.run_failures.get(id, 0)

    def _check_rows(self, rows: list[InboxRow], expected: list[Snowflake]) -> None:
        """What a shard has to deliver: these requests, and its interrupts whoever is held."""
        model, place = self.model, self._places()
        requests = [row for row in rows if row.kind is InboxKind.REQUEST]
        assert [row.envelope.request_id for row in requests] == expected
        for row in requests:
            id = row.envelope.request_id
            assert (row.failures, row.trial) == (model.failures.get(id, 0), id in model.on_trial)
            assert row.execution == model.of_run.get(id)
        interrupts = [row for row in rows if row.kind is InboxKind.INTERRUPT]
        assert len(requests) + len(interrupts) == len(rows)
        if rows:
            stored = model.interrupts[rows[0].shard]
            assert [row.envelope.request_id for row in interrupts] == stored
        for row in interrupts:
            id = row.envelope.request_id
            assert row.target == (place[id] if id in model.inbox[row.shard] else None)
            assert (None if row.reply is None else row.reply.payload) == model.exits.get(id)
            assert row.execution == (id if id in model.runs else None)

    def _commits(
        self,
        shard: ShardId,
        count: int,
        follow_up: tuple[ShardId, str | None] | None,
        states: list[tuple[str, int]],
    ) -> tuple[list[Commit], list[Snowflake]]:
        """Commits that settle and answer the oldest rows, and write a journal row each."""
        place = self._places()
        settled = self.model.inbox[shard][:count]
        commits: list[Commit] = []
        for id in settled:
            commit = update(id, Status.SUCCEEDED) if id in self.model.runs else Commit(shard=shard)
            commit.shard = shard
            commit.settled = [place[id]]
            sequence = self.model.position(id).next_sequence
            commit.replies = [success(id, b"%d" % id, sequence=sequence)]
            commits.append(commit)
        self.position += 1
        commits.append(Commit(shard=shard, journal=[step(JOURNAL, self.position)]))
        for name, version in states:
            entity = f"{name}{shard.number}"
            payload = b"%d at %d" % (version, self.position)
            commits.append(
                Commit(
                    shard=shard,
                    states=[
                        StateWrite(
                            entity_type="Till", entity_id=entity, version=version, payload=payload
                        )
                    ],
                )
            )
        if follow_up is not None:
            to, key = follow_up
            commits[-1].requests = [message(shard=to, key=key, entity="a")]
        return commits, settled

    def _committed(self, shard: ShardId, commits: list[Commit], settled: list[Snowflake]) -> None:
        """Take over into the model what a flush wrote; its seqs may not have come back."""
        for id in settled:
            self.model.settle(shard, id, b"%d" % id)
        self.model.journal += [row.position for commit in commits for row in commit.journal]
        for state in [each for commit in commits for each in commit.states]:
            self.model.write(state)
        for request in [each for commit in commits for each in commit.requests]:
            if self.model.expect(request) is SaveOutcome.CREATED:
                self.model.save(request)
                self.run(self._find_seq(request.envelope.request_id))

    async def _find_seq(self, id: Snowflake) -> None:
        """Read the seq of a request on the lane of its shard's owner, or on any."""
        shard = self.model.shard(id)
        lane = self.model.owner.get(shard)
        reader = self.lanes[0 if lane is None else lane]
        (row,) = [
            row
            for row in (await sweep_of(reader, shard, limit=1000)).rows
            if row.envelope.request_id == id and row.kind is InboxKind.REQUEST
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
            epoch = self.run(self._acquire_eventually(lane, shard))
            self.model.acquired(shard, epoch, lane, lost=False)

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
        lost = set(self.model.owner)
        self.model.owner.clear()
        successor = await self.world.process()
        self.lanes = [await successor.lane()]
        for shard in SHARDS:
            epoch = await self._acquire_eventually(0, shard)
            self.model.acquired(shard, epoch, 0, lost=shard in lost)
            swept = await sweep_of(self.lanes[0], shard, limit=1000)
            self._check_rows(list(swept.rows), self.model.inbox[shard])
        await self.lanes[0].close()
        await self._look()
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
        machine, settings=settings(max_examples=100, stateful_step_count=80, deadline=None)
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
