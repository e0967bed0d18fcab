"""The tables ``executions`` and ``journal`` of the in-memory database.

Changed by ``memory_rows``; user transactions add their journal rows themselves.
"""

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

from engine.core.ids import ShardId, Snowflake
from engine.core.journal import JournalKind, JournalRow
from engine.core.status import Status
from engine.storage.memory_filter import passes
from engine.storage.memory_shard import MemoryShard
from engine.storage.protocol import (
    SUSPECT,
    BadBatch,
    ExecutionFilter,
    ExecutionUpdate,
    StoredExecution,
    Verdict,
)
from engine.storage.standings import MISFIT, PatchAnswer, Standing


class MemoryExecutions:
    """Executions by id and by age, and the journal of each."""

    def __init__(self, shards: Mapping[ShardId, MemoryShard]) -> None:
        self._shards = shards
        self._rows: dict[Snowflake, StoredExecution] = {}
        self._by_age: list[Snowflake] = []
        self._journal: dict[Snowflake, dict[tuple[int, int], JournalRow]] = {}
        self._failed_at: dict[Snowflake, int] = {}
        self._on_trial: set[Snowflake] = set()
        self._followers: dict[Snowflake, dict[Snowflake, ShardId]] = {}

    def __contains__(self, execution: Snowflake) -> bool:
        return execution in self._rows

    # --- writing ------------------------------------------------------------------------------

    def start(self, execution: StoredExecution) -> None:
        self._rows[execution.request_id] = execution
        insort(self._by_age, execution.request_id)

    def update(self, update: ExecutionUpdate) -> None:
        """Change an execution; one that is not there is nobody's mistake. A new run begins without
        failures."""
        old = self._rows.get(update.request_id)
        if old is None:
            return
        shard = self._shards[old.shard]
        if old.wake_at is not None:
            shard.wake(old.request_id, old.wake_at)
        if update.wake_at is not None:
            shard.sleep(old.request_id, update.wake_at)
        if update.run != old.run:
            self._failed_at.pop(old.request_id, None)
        if update.verdict is Verdict.ON_TRIAL:
            self._on_trial.add(old.request_id)
        elif update.verdict is Verdict.ACQUITTED:
            self._on_trial.discard(old.request_id)
        kept = update.run == old.run and update.verdict is not Verdict.ACQUITTED
        self._rows[old.request_id] = replace(
            old,
            run=update.run,
            version=old.version if update.version is None else update.version,
            status=update.status,
            started_at=old.started_at or update.started_at,
            finished_at=update.finished_at,
            wake_at=update.wake_at,
            waiting=update.waiting,
            error=update.error,
            attributes=old.attributes if update.attributes is None else update.attributes,
            failures=old.failures if kept else 0,
        )

    def follow(self, execution: Snowflake, follower: Snowflake) -> bool:
        """Note who is to be told of an execution's end; False when that has come."""
        row, by = self._rows.get(execution), self._rows.get(follower)
        if row is None or by is None or row.status.finished:
            return False
        self._followers.setdefault(execution, {})[follower] = by.shard
        return True

    def followers(self, execution: Snowflake) -> Mapping[Snowflake, ShardId]:
        """Who follows an execution, and where."""
        return self._followers.get(execution, {})

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

    def forget(self, execution: Snowflake, *, run: int | None = None) -> None:
        """Delete an execution, or the journal of one of its runs."""
        if run is not None:
            journal = self._journal[execution]
            self._journal[execution] = {at: row for at, row in journal.items() if at[0] != run}
            return
        del self._rows[execution]
        self._by_age.remove(execution)
        self._journal.pop(execution, None)
        self._failed_at.pop(execution, None)
        self._on_trial.discard(execution)
        self._followers.pop(execution, None)

    def count_failure(self, execution: Snowflake) -> None:
        """Its runner was lost while it had work in hand: once more, or for the first time since it
        last got on. A suspect is blamed on trial only; what is finished or blocked had no work."""
        row = self._rows[execution]
        if _idle(row):
            return
        blamed = row.failures < SUSPECT or execution in self._on_trial
        self._on_trial.discard(execution)
        last = max(
            (at for run, at in self._journal.get(execution, ()) if run == row.run), default=0
        )
        got_on = last > self._failed_at.get(execution, 0)
        self._failed_at[execution] = last
        self._rows[execution] = replace(row, failures=1 if got_on else row.failures + blamed)

    def on_trial(self, shard: ShardId) -> list[Snowflake]:
        rows = (self._rows[each] for each in self._on_trial)
        return [row.request_id for row in rows if row.shard == shard and not _idle(row)]

    def end_trials(self, shard: ShardId) -> None:
        self._on_trial = {each for each in self._on_trial if self._rows[each].shard != shard}

    # --- reading ------------------------------------------------------------------------------

    def get(self, execution: Snowflake) -> StoredExecution | None:
        """The execution with the runner that owns its shard now."""
        stored = self._rows.get(execution)
        return None if stored is None else replace(stored, runner=self._shards[stored.shard].runner)

    def all(self) -> list[StoredExecution]:
        return [*self._rows.values()]

    def page(self, filter: ExecutionFilter, limit: int) -> list[StoredExecution]:
        """The youngest that pass the filter, from ``filter.after`` on."""
        ids = self._by_age
        start = len(ids) if filter.after is None else bisect_left(ids, filter.after)
        stored = (self.get(ids[position]) for position in range(start - 1, -1, -1))
        return list(islice((each for each in stored if each and passes(each, filter)), limit))

    def workflows(self) -> dict[str, str]:
        """Each workflow's name with its shard group."""
        return {each.workflow: each.shard.group for each in self._rows.values()}

    def standings(self) -> list[Standing]:
        """Executions that have not ended, counted."""
        live = [each for id in self._by_age if (each := self.get(id)) and not each.status.finished]
        of = {id(each): (each.workflow, each.version, each.status, each.runner) for each in live}
        counts = Counter(of.values())
        misfits = Counter(
            of[id(each)]
            for each in live
            if each.status is Status.BLOCKED and (each.waiting or "").startswith(MISFIT)
        )
        return [
            Standing(
                workflow=workflow,
                version=version,
                status=status,
                runner=runner,
                executions=count,
                misfits=misfits[workflow, version, status, runner],
            )
            for (workflow, version, status, runner), count in sorted(
                counts.items(), key=lambda item: (*item[0][:2], item[0][2].value)
            )
        ]

    def patch_answers(self) -> list[PatchAnswer]:
        """What ``patched()`` has told executions that have not ended."""
        counts = Counter(
            (execution.workflow, row.name, row.payload == b"true")
            for execution in self._rows.values()
            if not execution.status.finished
            for row in self.journal(execution.request_id, run=execution.run)
            if row.kind is JournalKind.PATCHED
        )
        return [
            PatchAnswer(workflow=workflow, change=change, answer=answer, executions=count)
            for (workflow, change, answer), count in sorted(counts.items())
        ]

    def journal(self, execution: Snowflake, *, run: int | None = None) -> list[JournalRow]:
        """The rows of one run, or of all, in order."""
        rows = sorted(self._journal.get(execution, {}).items())
        return [row for key, row in rows if run is None or key[0] == run]


def _idle(row: StoredExecution) -> bool:
    """Whether nobody has it in hand: it has finished, or waits for somebody to unblock it."""
    return row.status.finished or row.status is Status.BLOCKED
