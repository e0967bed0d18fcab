"""The tables of the in-memory database: requests and inboxes, and what is written with them.

Each method is one statement: it runs within one turn of the event loop, all of it or nothing.
``memory`` and ``memory_lane`` call it on behalf of a process; times are the database's clock's.
"""

import heapq
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import islice

from engine.core.clock import Clock
from engine.core.envelope import EnvelopeRequest, Interrupt, dedup_key
from engine.core.errors import ConfigurationError
from engine.core.ids import ShardId, Snowflake, entity_key
from engine.core.journal import JournalRow
from engine.core.status import Status
from engine.storage.entities import DeadFilter, DeadLetter, EntityFilter, EntityRow
from engine.storage.memory_dead import dead_letters
from engine.storage.memory_entities import MemoryEntities
from engine.storage.memory_executions import MemoryExecutions
from engine.storage.memory_failures import begin_trial, count_lost, end_trials, fail
from engine.storage.memory_heartbeats import MemoryHeartbeats
from engine.storage.memory_places import place
from engine.storage.memory_queues import MemoryQueues
from engine.storage.memory_replies import MemoryReplies
from engine.storage.memory_schedules import MemorySchedules
from engine.storage.memory_shard import NEVER, MemoryRow, MemoryShard
from engine.storage.places import Place
from engine.storage.protocol import (
    BadBatch,
    Commit,
    ExecutionUpdate,
    Flushed,
    InboxKind,
    InboxRow,
    NewReply,
    Saved,
    SaveOutcome,
    SaveRequest,
    StoredExecution,
    Sweep,
    Verdict,
)
from engine.storage.queues import Dispatched, QueueCounts, QueueWrite
from engine.storage.storable import check_storable


class MemoryRows:
    """Requests and who has to deliver them; ``replies``, ``executions``, ``entities``,
    ``schedules``, ``queues`` and ``heartbeats`` are the other tables."""

    def __init__(self, clock: Clock, shards: Mapping[ShardId, MemoryShard]) -> None:
        self.replies: MemoryReplies = MemoryReplies()
        self.executions: MemoryExecutions = MemoryExecutions(shards)
        self.entities: MemoryEntities = MemoryEntities(clock, shards)
        self.schedules: MemorySchedules = MemorySchedules(shards)
        self.queues: MemoryQueues = MemoryQueues(shards)
        self.heartbeats: MemoryHeartbeats = MemoryHeartbeats()
        self._clock = clock
        self._shards = shards
        self._seq = 0
        self._envelopes: dict[Snowflake, EnvelopeRequest] = {}
        self._dedup: dict[str, Snowflake] = {}
        self._waiting: Counter[Snowflake] = Counter()

    # --- writing ------------------------------------------------------------------------------

    def save(self, requests: Sequence[SaveRequest]) -> list[Saved]:
        """Store the requests in order, each at most once.

        ``InvalidPayload`` for one that PostgreSQL would not take, ``ConfigurationError`` for an
        unknown shard: nothing is stored.
        """
        for request in requests:
            check_storable(request)
            self._known(request.envelope.address.shard)
        return [self._save(request) for request in requests]

    def flush(self, commits: Sequence[Commit]) -> Flushed:
        """Write all commits, or raise ``BadBatch`` and write nothing."""
        self.executions.check_journal([row for commit in commits for row in commit.journal])
        self._check_commits(commits)
        requests: dict[Snowflake, Saved] = {}
        replies: dict[Snowflake, int] = {}
        overtaken: set[Snowflake] = set()
        # As in one SQL statement, requests see what executions were before it.
        for commit in commits:
            asked = [each.envelope.request_id for each in commit.requests]
            for request_id, saved in zip(asked, self.save(commit.requests), strict=True):
                requests.setdefault(request_id, saved)
        followers = {
            update.request_id: self.executions.followers(update.request_id)
            for update in (commit.execution for commit in commits)
            if update is not None and update.status.finished
        }
        for commit in commits:
            self._write(commit, replies, overtaken)
        followed = {ended: self._tell(ended, told) for ended, told in followers.items() if told}
        for commit in commits:
            self._note(commit)
        return Flushed(requests=requests, replies=replies, overtaken=overtaken, followed=followed)

    def _tell(self, ended: Snowflake, followers: Mapping[Snowflake, ShardId]) -> list[ShardId]:
        for follower, shard in followers.items():
            self._deliver(shard, InboxKind.REPLY, self._envelopes[ended], follower)
        return list(followers.values())

    def dispatch(self, write: QueueWrite) -> Dispatched:
        """Write what the owner of a queue decided."""
        chosen = self.queues.write(write)
        for item in (*chosen, *write.arrived):
            if item.shard is not None:
                self._deliver_item(write, item.request_id, item.shard, InboxKind.ADMITTED)
        for request_id, shard in write.interrupted:
            self._deliver_item(write, request_id, shard, InboxKind.INTERRUPT)
        for seq in write.settled:
            self._settle(write.shard, seq)
        told: list[ShardId] = []
        for request_id, kind, payload in write.ended:
            reply_to = self._envelopes[request_id].reply_to
            reply = NewReply(
                request_id=request_id, sequence=0, kind=kind, payload=payload, reply_to=reply_to
            )
            if self._reply(reply, {}) and reply_to is not None:
                told.append(reply_to.shard)
        return Dispatched(chosen=chosen, told=told)

    def _deliver_item(
        self, write: QueueWrite, request_id: Snowflake, shard: int, kind: InboxKind
    ) -> None:
        to = ShardId(write.shard.group, shard)
        self._deliver(to, kind, self._envelopes[request_id], None)

    def interrupt(self, interrupts: Sequence[Interrupt]) -> list[bool]:
        """Put a row for each into its request's inbox, unless that is unknown or has its exit."""
        asked = [each.request_id for each in interrupts]
        stored = {request_id: self._interrupt(request_id) for request_id in dict.fromkeys(asked)}
        return [stored[request_id] for request_id in asked]

    def revive(self, requests: Sequence[Snowflake]) -> list[ShardId]:
        """Deliver dead letters again."""
        shards: list[ShardId] = []
        for request_id in dict.fromkeys(requests):
            if request_id in self.executions or not self.replies.take_back(request_id):
                continue  # an execution is not delivered again but retried, by its journal
            envelope = self._envelopes[request_id]
            self._deliver(envelope.address.shard, InboxKind.REQUEST, envelope, None)
            shards.append(envelope.address.shard)
        return list(dict.fromkeys(shards))

    def reopen(
        self,
        request: EnvelopeRequest,
        *,
        run: int,
        journal: Sequence[JournalRow],
        version: int | None,
    ) -> ShardId | None:
        """Let an execution that has ended, but not well, go on as its next run."""
        execution = request.request_id
        state = self.executions.get(execution)
        ended_badly = state is not None and state.status.value > Status.SUCCEEDED.value
        if state is None or state.run != run or not ended_badly:
            return None
        self.executions.update(
            ExecutionUpdate(
                request_id=execution,
                run=run + 1,
                status=Status.RUNNING,
                version=version,
                wake_at=self._clock.now(),
                verdict=Verdict.ACQUITTED,
            )
        )
        self.executions.add_journal(journal)
        self._envelopes[execution] = replace(
            self._envelopes[execution], headers=request.headers, trace=request.trace
        )
        self.replies.reopen(execution)
        return state.shard

    def fork(
        self, request: SaveRequest, *, started_at: datetime, journal: Sequence[JournalRow]
    ) -> bool:
        """Store an execution that has a journal already."""
        envelope = request.envelope
        check_storable(request)
        if envelope.key in self._dedup:
            return False
        self.save([request])
        seq = self._known(envelope.address.shard).seq_of(envelope.request_id)
        assert seq is not None
        self._settle(envelope.address.shard, seq)
        self.executions.update(
            ExecutionUpdate(
                request_id=envelope.request_id,
                run=1,
                status=Status.RUNNING,
                started_at=started_at,
                wake_at=self._clock.now(),
            )
        )
        self.executions.add_journal(journal)
        return True

    def requests(self, after: Snowflake) -> list[EnvelopeRequest]:
        """All behind one, by id."""
        return [self._envelopes[id] for id in sorted(self._envelopes) if id > after]

    def forget(self, requests: Collection[Snowflake]) -> None:
        """Delete requests, with their keys and replies."""
        for each in requests:
            envelope = self._envelopes.pop(each, None)
            self.replies.forget(each)
            key = None if envelope is None else envelope.key
            if key is not None and self._dedup.get(key) == each:
                del self._dedup[key]

    def spoken_of(self) -> set[Snowflake]:
        """All that inbox rows are, or are for."""
        inbox = [row for shard in self._shards.values() for row in shard.all()]
        return {row.request_id for row in inbox} | {row.execution for row in inbox if row.execution}

    def change_owner(self, shard_id: ShardId, *, lost: bool) -> None:
        """``lost``: the last owner went without a release, and with whatever it had in hand."""
        shard = self._known(shard_id)
        if lost:
            count_lost(shard, self.executions, self._clock.now())
        else:
            end_trials(shard, self.executions)

    def _write(
        self, commit: Commit, replies: dict[Snowflake, int], overtaken: set[Snowflake]
    ) -> None:
        self.executions.add_journal(commit.journal)
        ended = {reply.request_id for reply in commit.replies if self._reply(reply, replies)}
        for seq in commit.settled:
            self._settle(commit.shard, seq)
        if commit.execution is not None:
            self.executions.update(commit.execution)
        if commit.exit is None or commit.exit in ended:
            for state in commit.states:
                self.entities.write(commit.shard, state)
        elif commit.states:
            overtaken.add(commit.exit)

    def _note(self, commit: Commit) -> None:
        """What PostgreSQL writes in statements of their own, after all the rest of a batch."""
        shard = self._known(commit.shard)
        fail(shard, commit.failed)
        begin_trial(shard, commit.tried)
        for schedule in commit.schedules:
            self.schedules.write(schedule)
        for fire in commit.fires:
            self.schedules.fire(fire)
        self.heartbeats.write(commit.heartbeats)

    def _interrupt(self, request_id: Snowflake) -> bool:
        envelope = self._envelopes.get(request_id)
        if envelope is None or self.ended(request_id):
            return False
        execution = request_id if request_id in self.executions else None
        self._deliver(envelope.address.shard, InboxKind.INTERRUPT, envelope, execution)
        return True

    def _save(self, request: SaveRequest) -> Saved:
        if request.opening is not None:
            return self._open(request, request.opening)
        envelope, now = request.envelope, self._clock.now()
        asked = envelope.request_id
        taken = self._dedup.get(envelope.key) if envelope.key is not None else asked
        if taken is not None and (stored := self._envelopes.get(taken)) is not None:
            return Saved(outcome=SaveOutcome.EXISTS, request_id=taken, payload=stored.payload)
        execution: Snowflake | None = None
        if request.target is not None:
            execution = self._dedup.get(request.target)
            target = None if execution is None else self.executions.get(execution)
            if target is None:
                return Saved(outcome=SaveOutcome.NO_TARGET, request_id=asked)
            if target.status.finished:
                return Saved(outcome=SaveOutcome.TARGET_FINISHED, request_id=asked)
        elif request.execution is not None:
            execution = asked
            self.executions.start(request.begun(request.execution, now))
        if envelope.key is not None:
            self._dedup[envelope.key] = asked
        self._envelopes[asked] = envelope
        seq = self._deliver(envelope.address.shard, InboxKind.REQUEST, envelope, execution)
        return Saved(outcome=SaveOutcome.CREATED, request_id=asked, seq=seq)

    def _open(self, request: SaveRequest, opening: SaveRequest) -> Saved:
        """Store a message with the start of its execution, if that is not there."""
        envelope, message = request.envelope, replace(request, opening=None)
        taken = envelope.request_id if envelope.key is None else self._dedup.get(envelope.key)
        known = taken is not None and taken in self._envelopes
        found = self._dedup.get(opening.envelope.key or "")
        if found is None and not known:
            opened = replace(self._save(opening), seq=None)
            return replace(self._save(message), opened=opened)
        assert found is not None
        payload = self._envelopes[found].payload
        opened = Saved(outcome=SaveOutcome.EXISTS, request_id=found, payload=payload)
        same = opening.envelope.payload if request.alike is None else request.alike
        if not known and (not request.joins or payload != same):
            return Saved(
                outcome=SaveOutcome.NOT_OPENED, request_id=envelope.request_id, opened=opened
            )
        return replace(self._save(message), opened=opened)

    def _deliver(
        self,
        shard: ShardId,
        kind: InboxKind,
        envelope: EnvelopeRequest,
        execution: Snowflake | None,
    ) -> int:
        self._seq += 1
        is_request = kind is InboxKind.REQUEST
        address = envelope.address
        self._known(shard).add(
            MemoryRow(
                shard=shard,
                seq=self._seq,
                kind=kind,
                request_id=envelope.request_id,
                execution=execution,
                due_at=envelope.deliver_at if is_request else None,
                entity=entity_key(address.entity_type, address.entity_id)
                if is_request and execution is None
                else None,
            )
        )
        if execution is not None:
            self._waiting[execution] += 1
        return self._seq

    def _reply(self, reply: NewReply, rows: dict[Snowflake, int]) -> bool:
        """Whether it became its request's exit."""
        became_exit = self.replies.add(reply)
        envelope = self._envelopes.get(reply.request_id)
        if became_exit and reply.reply_to is not None and envelope is not None:
            rows[reply.request_id] = self._deliver(
                reply.reply_to.shard, InboxKind.REPLY, envelope, reply.reply_to.execution
            )
        return became_exit

    def _settle(self, shard: ShardId, seq: int) -> None:
        row = self._known(shard).remove(seq)
        if row is not None and row.kind is InboxKind.ADMITTED:
            envelope = self._envelopes[row.request_id]
            self._deliver(envelope.address.shard, InboxKind.FREED, envelope, None)
        if row is not None and row.execution is not None:
            self._waiting[row.execution] -= 1
            if not self._waiting[row.execution]:
                del self._waiting[row.execution]

    def _check_commits(self, commits: Sequence[Commit]) -> None:
        updated = [each.execution.request_id for each in commits if each.execution is not None]
        if len(set(updated)) < len(updated):
            raise BadBatch("the batch updates one execution twice")
        for commit in commits:
            for shard in self._targets(commit):
                if shard not in self._shards:
                    raise BadBatch(f"there is no shard {shard}")

    def _targets(self, commit: Commit) -> Iterator[ShardId]:
        yield commit.shard
        yield from (request.envelope.address.shard for request in commit.requests)
        yield from (each.reply_to.shard for each in commit.replies if each.reply_to is not None)

    def _known(self, shard: ShardId) -> MemoryShard:
        try:
            return self._shards[shard]
        except KeyError:
            raise ConfigurationError(
                f"there is no shard {shard}: create its group first, with ensure_groups"
            ) from None

    # --- reading ------------------------------------------------------------------------------

    def sweep(
        self,
        shards: Sequence[ShardId],
        *,
        in_flight: Collection[int],
        resident: Collection[Snowflake],
        held: Sequence[Collection[int]],
        admitted: Collection[int] | None,
        floors: Sequence[int],
        limit: int,
        horizon: timedelta,
    ) -> Sweep:
        """What the shards have to deliver; see ``LaneSession.sweep``."""
        now = self._clock.now()
        until = now + horizon
        swept = [self._known(each) for each in dict.fromkeys(shards)]
        terms = zip(swept, held or [()] * len(swept), floors or [0] * len(swept), strict=True)
        ready = heapq.merge(
            *(shard.ready(now, in_flight, keys, admitted, floor) for shard, keys, floor in terms),
            key=lambda row: row.seq,
        )
        due = heapq.merge(*(shard.due(until, resident) for shard in swept))
        rows = list(islice(ready, limit + 1))
        wakes = list(islice(due, limit + 1))
        next_due = min((each.next_due(until) for each in swept), default=NEVER)
        return Sweep(
            rows=[self._inbox_row(row) for row in rows[:limit]],
            due=[execution for _, execution in wakes[:limit]],
            next_due=None if next_due == NEVER else next_due,
            more=max(len(rows), len(wakes)) > limit,
            now=now,
            last=max((each.last or 0 for each in swept), default=None)
            if any(held) or admitted is not None
            else None,
        )

    def envelope(self, request_id: Snowflake) -> EnvelopeRequest | None:
        return self._envelopes.get(request_id)

    def known(self, keys: Collection[str]) -> Collection[str]:
        return self._dedup.keys() & set(keys)

    def ended(self, request_id: Snowflake) -> bool:
        return self.replies.exit(request_id) is not None

    def find(self, workflow: str, execution_id: str) -> StoredExecution | None:
        request_id = self._dedup.get(dedup_key("run", workflow, execution_id))
        return None if request_id is None else self.executions.get(request_id)

    def waiting(self, execution: Snowflake) -> int:
        return self._waiting[execution]

    def entity_page(self, filter: EntityFilter, limit: int) -> list[EntityRow]:
        return self.entities.page(filter, limit, self._envelopes)

    def queue_counts(self, names: Sequence[str] | None) -> list[QueueCounts]:
        return self.queues.counts(names, self._envelopes, self._clock.now())

    def place(self, request_id: Snowflake) -> Place | None:
        """Where a message or an item is."""
        envelope = self._envelopes.get(request_id)
        if envelope is None or self.ended(request_id):
            return None
        return place(envelope, self._envelopes, self._shards, self.queues, self._clock.now())

    def dead_letters(self, filter: DeadFilter, limit: int) -> list[DeadLetter]:
        """The youngest that pass the filter, from ``filter.after`` on; no executions."""
        dead = (exit for exit in self.replies.dead() if exit.request_id not in self.executions)
        return dead_letters(dead, self._envelopes, filter, limit)

    def _inbox_row(self, row: MemoryRow) -> InboxRow:
        is_interrupt = row.kind is InboxKind.INTERRUPT
        is_answered = is_interrupt or row.kind is InboxKind.REPLY
        return InboxRow(
            seq=row.seq,
            kind=row.kind,
            shard=row.shard,
            envelope=self._envelopes[row.request_id],
            execution=row.execution,
            state=None if row.execution is None else self.executions.get(row.execution),
            reply=self.replies.exit(row.request_id) if is_answered else None,
            target=self._shards[row.shard].seq_of(row.request_id) if is_interrupt else None,
            failures=row.failures,
            trial=row.trial,
        )
