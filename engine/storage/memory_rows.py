"""The tables of the in-memory database: requests, replies, executions, journals.

Each method is one statement: it runs within one turn of the event loop, all of it or nothing.
``memory`` and ``memory_lane`` call it on behalf of a process; times are the database's clock's.
"""

import heapq
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice

from engine.core.clock import Clock
from engine.core.envelope import EnvelopeRequest, dedup_key
from engine.core.errors import ConfigurationError
from engine.core.ids import ShardId, Snowflake
from engine.core.journal import JournalRow
from engine.core.reply import ReplyKind
from engine.core.status import Status
from engine.storage.memory_filter import passes
from engine.storage.memory_shard import NEVER, MemoryRow, MemoryShard
from engine.storage.protocol import (
    BadBatch,
    Commit,
    ExecutionFilter,
    ExecutionUpdate,
    Flushed,
    InboxKind,
    InboxRow,
    NewReply,
    Saved,
    SaveOutcome,
    SaveRequest,
    StoredExecution,
    StoredReply,
    Sweep,
)
from engine.storage.storable import check_storable


class MemoryRows:
    """What is stored, with an index for each way it is asked for."""

    def __init__(self, clock: Clock, shards: Mapping[ShardId, MemoryShard]) -> None:
        self._clock = clock
        self._shards = shards
        self._seq = 0
        self._envelopes: dict[Snowflake, EnvelopeRequest] = {}
        self._dedup: dict[str, Snowflake] = {}
        self._replies: dict[Snowflake, dict[int, StoredReply]] = {}
        self._exits: dict[Snowflake, StoredReply] = {}
        self._executions: dict[Snowflake, StoredExecution] = {}
        self._by_age: list[Snowflake] = []
        self._journal: dict[Snowflake, dict[tuple[int, int], JournalRow]] = {}
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
        self.check_journal([row for commit in commits for row in commit.journal])
        self._check_commits(commits)
        requests: dict[Snowflake, Saved] = {}
        replies: dict[Snowflake, int] = {}
        # As in one SQL statement, requests see what executions were before it.
        for commit in commits:
            asked = [each.envelope.request_id for each in commit.requests]
            for request_id, saved in zip(asked, self.save(commit.requests), strict=True):
                requests.setdefault(request_id, saved)
        for commit in commits:
            self.add_journal(commit.journal)
            for reply in commit.replies:
                self._reply(reply, replies)
            for seq in commit.settled:
                self._settle(commit.shard, seq)
            if commit.execution is not None:
                self._update(commit.execution)
        return Flushed(requests=requests, replies=replies)

    def check_journal(self, rows: Sequence[JournalRow]) -> None:
        """``BadBatch`` when a key is taken or occurs twice."""
        keys = {(row.execution, row.run, row.position) for row in rows}
        if len(keys) < len(rows):
            raise BadBatch("the batch holds two journal rows of one position")
        for row in rows:
            if (row.run, row.position) in self._journal.get(row.execution, {}):
                raise BadBatch(
                    f"the journal of {row.execution} has a row {row.position} of run {row.run}"
                )

    def add_journal(self, rows: Sequence[JournalRow]) -> None:
        for row in rows:
            self._journal.setdefault(row.execution, {})[row.run, row.position] = row

    def _save(self, request: SaveRequest) -> Saved:
        envelope, now = request.envelope, self._clock.now()
        asked = envelope.request_id
        taken = self._dedup.get(envelope.key) if envelope.key is not None else asked
        if taken is not None and (stored := self._envelopes.get(taken)) is not None:
            return Saved(outcome=SaveOutcome.EXISTS, request_id=taken, payload=stored.payload)
        execution: Snowflake | None = None
        if request.target is not None:
            execution = self._dedup.get(request.target)
            target = None if execution is None else self._executions.get(execution)
            if target is None:
                return Saved(outcome=SaveOutcome.NO_TARGET, request_id=asked)
            if target.status.finished:
                return Saved(outcome=SaveOutcome.TARGET_FINISHED, request_id=asked)
        elif request.execution is not None:
            execution = asked
            start, address = request.execution, envelope.address
            self._start(
                StoredExecution(
                    request_id=asked,
                    workflow=address.entity_type,
                    execution_id=address.entity_id,
                    shard=address.shard,
                    status=Status.SCHEDULED,
                    run=1,
                    version=start.version,
                    created_at=now,
                    parent=start.parent,
                    attributes=start.attributes,
                )
            )
        if envelope.key is not None:
            self._dedup[envelope.key] = asked
        self._envelopes[asked] = envelope
        seq = self._deliver(envelope.address.shard, InboxKind.REQUEST, envelope, execution)
        return Saved(outcome=SaveOutcome.CREATED, request_id=asked, seq=seq)

    def _start(self, execution: StoredExecution) -> None:
        self._executions[execution.request_id] = execution
        insort(self._by_age, execution.request_id)

    def _deliver(
        self,
        shard: ShardId,
        kind: InboxKind,
        envelope: EnvelopeRequest,
        execution: Snowflake | None,
    ) -> int:
        self._seq += 1
        self._known(shard).add(
            MemoryRow(
                shard=shard,
                seq=self._seq,
                kind=kind,
                request_id=envelope.request_id,
                execution=execution,
                due_at=envelope.deliver_at if kind is InboxKind.REQUEST else None,
            )
        )
        if execution is not None:
            self._waiting[execution] += 1
        return self._seq

    def _reply(self, reply: NewReply, rows: dict[Snowflake, int]) -> None:
        stored = self._replies.setdefault(reply.request_id, {})
        is_exit = reply.kind is not ReplyKind.CHUNK
        # INVARIANT reply-once: the first exit stored is the exit; later ones change nothing.
        if reply.sequence in stored or (is_exit and reply.request_id in self._exits):
            return
        row = StoredReply(
            request_id=reply.request_id,
            sequence=reply.sequence,
            kind=reply.kind,
            payload=reply.payload,
        )
        stored[reply.sequence] = row
        if not is_exit:
            return
        self._exits[reply.request_id] = row
        envelope = self._envelopes.get(reply.request_id)
        if reply.reply_to is not None and envelope is not None:
            rows[reply.request_id] = self._deliver(
                reply.reply_to.shard, InboxKind.REPLY, envelope, reply.reply_to.execution
            )

    def _settle(self, shard: ShardId, seq: int) -> None:
        row = self._known(shard).remove(seq)
        if row is not None and row.execution is not None:
            self._waiting[row.execution] -= 1
            if not self._waiting[row.execution]:
                del self._waiting[row.execution]

    def _update(self, update: ExecutionUpdate) -> None:
        old = self._executions.get(update.request_id)
        if old is None:
            return
        shard = self._shards[old.shard]
        if old.wake_at is not None:
            shard.wake(old.request_id, old.wake_at)
        if update.wake_at is not None:
            shard.sleep(old.request_id, update.wake_at)
        self._executions[old.request_id] = replace(
            old,
            run=update.run,
            status=update.status,
            started_at=old.started_at or update.started_at,
            finished_at=update.finished_at,
            wake_at=update.wake_at,
            waiting=update.waiting,
        )

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
        limit: int,
        horizon: timedelta,
    ) -> Sweep:
        """What the shards have to deliver; see ``LaneSession.sweep``."""
        now = self._clock.now()
        until = now + horizon
        swept = [self._known(each) for each in dict.fromkeys(shards)]
        ready = heapq.merge(
            *(shard.ready(now, in_flight) for shard in swept), key=lambda row: row.seq
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
        )

    def envelope(self, request_id: Snowflake) -> EnvelopeRequest | None:
        return self._envelopes.get(request_id)

    def replies(self, requests: Sequence[Snowflake]) -> list[StoredReply]:
        """By request and sequence."""
        return [
            reply
            for request_id in sorted(set(requests))
            for _, reply in sorted(self._replies.get(request_id, {}).items())
        ]

    def ended(self, request_id: Snowflake) -> bool:
        return request_id in self._exits

    def execution(self, request_id: Snowflake) -> StoredExecution | None:
        """The execution with the runner that owns its shard now."""
        stored = self._executions.get(request_id)
        return None if stored is None else replace(stored, runner=self._shards[stored.shard].runner)

    def find(self, workflow: str, execution_id: str) -> StoredExecution | None:
        request_id = self._dedup.get(dedup_key("run", workflow, execution_id))
        return None if request_id is None else self.execution(request_id)

    def page(self, filter: ExecutionFilter, limit: int) -> list[StoredExecution]:
        """The youngest that pass the filter, from ``filter.after`` on."""
        ids = self._by_age
        start = len(ids) if filter.after is None else bisect_left(ids, filter.after)
        stored = (self.execution(ids[position]) for position in range(start - 1, -1, -1))
        return list(islice((each for each in stored if each and passes(each, filter)), limit))

    def workflows(self) -> dict[str, str]:
        """Each workflow's name with its shard group."""
        return {each.workflow: each.shard.group for each in self._executions.values()}

    def journal(self, execution: Snowflake, *, run: int | None = None) -> list[JournalRow]:
        """The rows of one run, or of all, in order."""
        rows = sorted(self._journal.get(execution, {}).items())
        return [row for key, row in rows if run is None or key[0] == run]

    def waiting(self, execution: Snowflake) -> int:
        return self._waiting[execution]

    def _inbox_row(self, row: MemoryRow) -> InboxRow:
        is_reply = row.kind is InboxKind.REPLY
        return InboxRow(
            seq=row.seq,
            kind=row.kind,
            shard=row.shard,
            envelope=self._envelopes[row.request_id],
            execution=row.execution,
            state=None if row.execution is None else self.execution(row.execution),
            reply=self._exits[row.request_id] if is_reply else None,
        )
