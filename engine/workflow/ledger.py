"""What one execution has to write, and how much of it is durable.

``workflow.resident`` and its parts put journal rows, requests and state changes in; the lane of the
shard takes them out with its next flush. The execution's clock is kept here too, since every row
moves it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime

from engine.core.clock import Clock
from engine.core.ids import ShardId, Snowflake
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.reply import Exit
from engine.core.status import Status
from engine.storage.heartbeats import StepHeartbeat
from engine.storage.lane import BATCH_BYTES
from engine.storage.protocol import (
    UNDECIDED,
    Commit,
    ExecutionUpdate,
    NewReply,
    SaveRequest,
    StoredExecution,
    Verdict,
    exit_reply,
)
from engine.workflow.pause import keep_pauses
from engine.workflow.step import Step, StepKey


class Ledger:
    """The rows of one execution between its events and its flushes.

    ``mark`` counts what was appended, ``durable(mark)`` says whether as much has been flushed.
    ``version`` is that of its code, which is pinned by the first commit. ``moved`` is told of every
    step of the execution's clock, once there is a body. Of the inbox rows it holds, one stays
    unsettled while the execution runs: by that row (or by its ``wake_at``) a next owner finds it.
    ``paused`` are the pauses that its journal says are not over, by name.
    """

    __slots__ = (
        "_answers",
        "_attributes",
        "_begun_at",
        "_clock",
        "_commit",
        "_commit_mark",
        "_dirty",
        "_flushed",
        "_heartbeats",
        "_missing",
        "_next_version",
        "_position",
        "_requests",
        "_resolved",
        "_rows",
        "_settled",
        "_start_durable",
        "_start_marked",
        "_state",
        "_stored_run",
        "_update",
        "_version",
        "at",
        "held",
        "id",
        "mark",
        "moved",
        "on_trial",
        "paused",
        "reply",
        "run",
        "wake_at",
    )

    def __init__(
        self,
        state: StoredExecution,
        *,
        version: int,
        begun_at: datetime | None,
        last_position: int,
        clock: Clock,
    ) -> None:
        self.id: Snowflake = state.request_id
        self.run: int = state.run
        self.at: datetime = begun_at or clock.now()
        self._begun_at = self.at
        self.wake_at: datetime | None = state.wake_at
        self.moved: Callable[[datetime], None] = _nobody
        self.mark: int = 0
        self.held: list[int] = []
        self.reply: NewReply | None = None
        self.on_trial: bool = False
        self.paused: dict[str, JournalRow] = {}
        self._resolved: dict[str, JournalRow] = {}
        self._clock = clock
        self._position = last_position
        self._flushed = 0
        self._version = self._next_version = version
        self._start_durable = state.started_at is not None and state.version != UNDECIDED
        self._start_marked = False
        self._dirty = False
        self._stored_run: int = state.run
        self._rows: list[JournalRow] = []
        self._requests: list[SaveRequest] = []
        self._answers: list[NewReply] = []
        self._heartbeats: dict[StepKey, StepHeartbeat] = {}
        self._settled: list[int] = []
        self._update: ExecutionUpdate | None = None
        self._attributes: bytes | None = None
        self._commit: Commit | None = None
        self._commit_mark = 0
        self._missing = 0
        self.set_status(Status.RUNNING, flush=False)

    def free(self) -> None:
        """Tell nobody any more."""
        self.moved = _nobody

    # --- in ---------------------------------------------------------------------------------------

    def tick(self) -> datetime:
        """The time of an event being delivered now; the execution's clock never steps back."""
        self.move(self._clock.now())
        return self.at

    def move(self, at: datetime) -> None:
        if at > self.at:
            self.at = at
        self.moved(self.at)

    def append(
        self,
        kind: JournalKind,
        name: str,
        ordinal: int,
        *,
        at: datetime | None = None,
        attempt: int = 1,
        outcome: Outcome = Outcome.OK,
        digest: int = 0,
        started_at: datetime | None = None,
        due_at: datetime | None = None,
        source: Snowflake | None = None,
        payload: bytes = b"",
    ) -> JournalRow:
        """Add an event; its position is given here, at delivery. ``at``: not now, but then."""
        if at is None:
            self.tick()
        elif at > self.at:
            self.move(at)
        self._position += 1
        self.mark += 1
        self._dirty = True
        row = JournalRow(
            execution=self.id,
            run=self.run,
            position=self._position,
            kind=kind,
            name=name,
            ordinal=ordinal,
            at=self.at,
            attempt=attempt,
            outcome=outcome,
            digest=digest,
            started_at=started_at,
            due_at=due_at,
            source=source,
            payload=payload,
        )
        self._rows.append(row)
        if kind in _KEPT:
            self.keep(row)
        return row

    def amend(self, row: JournalRow, by: JournalRow) -> None:
        """Put another in the place of a row that was just added, or is held back since."""
        if row in self._rows:
            self._rows[self._rows.index(row)] = by

    def keep(self, row: JournalRow) -> None:
        """Of a row there is: what is resolved or paused stays so in the runs to come."""
        if row.kind is JournalKind.RESOLVED:
            self._resolved.setdefault(row.name, row)
        else:
            keep_pauses(self.paused, row)

    def append_step(
        self, step: Step, outcome: Outcome, payload: bytes, source: Snowflake | None = None
    ) -> None:
        """Add the end of a step."""
        self.append(
            JournalKind.STEP,
            step.name,
            step.ordinal,
            attempt=step.attempt,
            outcome=outcome,
            digest=step.digest,
            started_at=step.started_at,
            source=source,
            payload=payload,
        )

    def transaction_row(self, step: Step, payload: bytes) -> JournalRow:
        """The row a transaction inserts itself; it takes its position now and is not queued. The
        body is told of its time with its outcome, as in a replay."""
        self._position += 1
        self.at = max(self.at, self._clock.now())
        return JournalRow(
            execution=self.id,
            run=self.run,
            position=self._position,
            kind=JournalKind.STEP,
            name=step.name,
            ordinal=step.ordinal,
            at=self.at,
            attempt=step.attempt,
            digest=step.digest,
            started_at=step.started_at,
            payload=payload,
        )

    def request(self, request: SaveRequest) -> None:
        self._requests.append(request)
        self._dirty = True

    def hold_back(self) -> None:
        """Write nothing more until ``let_go`` has added a request that belongs to what is there."""
        self._missing += 1

    def let_go(self, request: SaveRequest) -> None:
        self._missing -= 1
        self.request(request)

    def withdraw(self, request_id: Snowflake) -> bool:
        """Take a request back; False when it is on its way, or durable."""
        kept = [each for each in self._requests if each.envelope.request_id != request_id]
        withdrawn = len(kept) < len(self._requests)
        self._requests = kept
        return withdrawn

    def answer(self, source: Snowflake, exit: Exit) -> None:
        """Answer an update."""
        self._answers.append(exit_reply(source, exit))
        self._dirty = True

    def beat(self, step: Step, at: datetime, details: bytes | None) -> None:
        """Note what a step has reported; None removes what was noted, since it has ended."""
        self._heartbeats[step.key] = StepHeartbeat(
            execution=self.id,
            run=self.run,
            name=step.name,
            ordinal=step.ordinal,
            attempt=step.attempt,
            at=at,
            details=details,
        )
        self._dirty = True

    def still(self, step: Step) -> None:
        """A step has ended: what it reported, if it may have reported anything, is of no use."""
        if step.definition is None or step.definition.heartbeat_timeout is None:
            return
        if step.reported or step.details is None:
            self.beat(step, self.at, None)

    def begin_run(self, request: bytes) -> None:
        """Go on as a new run, which begins with its request and with what stays resolved; of which
        version is for whoever takes it up."""
        self.run += 1
        self._position = 0
        self._next_version = UNDECIDED
        self.append(JournalKind.CONTINUED, "continued", self._version, payload=request)
        for row in [*self._resolved.values(), *self.paused.values()]:
            self._position += 1
            self._rows.append(replace(row, run=self.run, position=self._position))

    def repair(self, rows: Sequence[JournalRow]) -> None:
        """Go on as a new run that begins with these rows."""
        self.run += 1
        self._position = rows[-1].position
        self._rows.extend(rows)
        self.mark += 1
        self._dirty = True

    def settle(self, seq: int) -> None:
        """Delete an inbox row with the next flush, unless it is the one that is kept."""
        if len(self.held) > 1 and seq in self.held:
            self.held.remove(seq)
            self._settled.append(seq)
            self._dirty = True

    def drop(self, seq: int) -> None:
        """Delete an inbox row with the next flush, whichever it is."""
        self.held.remove(seq)
        self._settled.append(seq)
        self._dirty = True

    def settle_all(self) -> None:
        self._settled.extend(self.held)
        self.held = []
        self._dirty = True

    def need_start(self) -> None:
        """Something is about to depend on the time of the start, or to be written off the lane:
        the start, and the version, count until they are durable."""
        if not self._start_durable and not self._start_marked:
            self._start_marked = True
            self.mark += 1
            self._dirty = True

    def set_status(
        self,
        status: Status,
        *,
        waiting: str | None = None,
        finished_at: datetime | None = None,
        error: str | None = None,
        flush: bool = True,
    ) -> None:
        """The execution's state; without ``flush`` it waits for something else to be written."""
        self._update = ExecutionUpdate(
            request_id=self.id,
            run=self.run,
            status=status,
            started_at=self._begun_at,
            finished_at=finished_at,
            wake_at=None if status.finished else self.wake_at,
            waiting=waiting,
            version=self._next_version,
            error=error,
            attributes=self._attributes,
        )
        self._state = self._update
        self._dirty = self._dirty or flush

    def describe(self, attributes: bytes) -> None:
        """Its attributes, from now on."""
        if attributes != self._attributes:
            self._attributes = attributes
            self._update = self._state = replace(self._state, attributes=attributes)
            self._dirty = True

    def begin_trial(self) -> None:
        """Note that it is about to run on trial, until something of it has become durable."""
        self.on_trial = True
        self.set_status(Status.RUNNING)
        self._judge(Verdict.ON_TRIAL)

    def acquit(self) -> None:
        """Forget its failures."""
        self.on_trial = False
        self.set_status(Status.RUNNING)
        self._judge(Verdict.ACQUITTED)

    def _judge(self, verdict: Verdict) -> None:
        assert self._update is not None
        self._update = replace(self._update, verdict=verdict)

    def end(self, status: Status, reply: NewReply, *, error: str | None = None) -> None:
        """The exit, of an error of that type: it leaves with every row before it."""
        self.reply = reply
        self.settle_all()
        self.set_status(status, finished_at=max(self.at, self._clock.now()), error=error)

    # --- out --------------------------------------------------------------------------------------

    @property
    def ready(self) -> bool:
        """Whether there is something to write and nothing on its way."""
        return self._dirty and self._commit is None and not self._missing

    @property
    def busy(self) -> bool:
        return self._dirty or self._commit is not None

    def durable(self, mark: int) -> bool:
        return mark <= self._flushed

    def collect(self, shard: ShardId) -> Commit | None:
        """All there is to write, as one commit, or as much of its rows as fits one statement; None
        while another is on its way, or something that belongs to it is missing."""
        if self._commit is not None or self._missing:
            return None
        if self.on_trial:
            self._weigh()
        # A new run is there as a whole or not at all: half a copied journal would run steps again,
        # and after a crash its rows would be in the way of those of the next attempt.
        fitting = len(self._rows)
        if fitting > 1 and (fitting := _fitting(self._rows)) < len(self._rows):
            fitting = min(fitting, sum(row.run == self._stored_run for row in self._rows))
            if fitting:
                return self._collect_some(fitting, shard)
        self._commit = Commit(
            shard=shard,
            journal=self._rows,
            replies=self._answers if self.reply is None else [*self._answers, self.reply],
            requests=self._requests,
            settled=self._settled,
            execution=self._update,
            heartbeats=[*self._heartbeats.values()] if self._heartbeats else (),
        )
        self._commit_mark = self.mark
        self._clear()
        return self._commit

    def _collect_some(self, count: int, shard: ShardId) -> Commit:
        """The oldest rows, with the requests up to the first whose CALL row is not among them; all
        else follows later."""
        rows, self._rows = self._rows[:count], self._rows[count:]
        later = {row.source for row in self._rows if row.kind is JournalKind.CALL}
        asked = [each.envelope.request_id in later for each in self._requests]
        cut = asked.index(True) if True in asked else len(asked)
        requests, self._requests = self._requests[:cut], self._requests[cut:]
        update = self._update  # with it, since who finds no start looks for no journal
        if update is not None:
            update = replace(
                update,
                run=self._stored_run,
                version=self._version,
                status=Status.RUNNING,
                finished_at=None,
                waiting=None,
            )
        answered = {row.source for row in rows if row.kind is JournalKind.ANSWER}
        answers = [each for each in self._answers if each.request_id in answered]
        self._answers = [each for each in self._answers if each.request_id not in answered]
        self._commit = Commit(
            shard=shard, journal=rows, replies=answers, requests=requests, execution=update
        )
        self._commit_mark = max(self._flushed, self.mark - len(self._rows))
        return self._commit

    def _weigh(self) -> None:
        """Its trial is over with its first row, and with everything else that ends its work."""
        update = self._update
        if update is not None and update.status is not Status.RUNNING:
            self.on_trial = False
            self._judge(Verdict.ACQUITTED)
        elif self._rows:
            self.acquit()

    def committed(self) -> Commit | None:
        """The commit on its way has become durable."""
        commit, self._commit = self._commit, None
        if commit is not None:
            self._flushed = self._commit_mark
            if commit.execution is not None:
                self._stored_run = commit.execution.run
            self._start_durable = self._start_durable or commit.execution is not None
        return commit

    def discard(self) -> None:
        """The commit on its way was refused for good: forget it and what came after it."""
        self._commit = None
        self.reply = None
        self._clear()

    def _clear(self) -> None:
        self._rows, self._requests, self._settled, self._update = [], [], [], None
        self._answers = []
        self._heartbeats = {}
        self._dirty = False


_KEPT = frozenset({JournalKind.RESOLVED, JournalKind.PAUSED, JournalKind.RESUMED})


def _fitting(rows: Sequence[JournalRow]) -> int:
    """How many of them go into one statement: one at least."""
    size = 0
    for count, row in enumerate(rows):
        size += len(row.payload)
        if size > BATCH_BYTES:
            return max(1, count)
    return len(rows)


def _nobody(_: object) -> None:
    """Nobody listens any more."""
