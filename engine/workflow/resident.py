"""An execution in this runner's memory: it turns what happens into journal rows and feeds the body.

Rows of the inbox and the ends of steps come in as events; each gets a position, goes to the body,
and leaves with the next flush of the shard's lane. No command of the body leaves before everything
it could depend on is durable.
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, Protocol

from engine.cluster.delivery import Delivery
from engine.cluster.shard import OwnedShard
from engine.core.clock import Alarm, Clock
from engine.core.codec import same_json
from engine.core.envelope import EnvelopeRequest, ReplyTo
from engine.core.errors import (
    ErrorDetails,
    InvalidPayload,
    NonDeterminism,
    OwnershipLost,
    PayloadConflict,
    StorageUnavailable,
)
from engine.core.ids import Snowflake, SnowflakeGenerator
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.reply import (
    Defect,
    Exit,
    Failure,
    Interrupted,
    Success,
    Terminated,
    decode_exit,
    encode_error,
    encode_exit,
)
from engine.core.status import Status
from engine.storage.protocol import (
    BadBatch,
    Commit,
    ExecutionUpdate,
    Flushed,
    InboxKind,
    InboxRow,
    NewReply,
    SaveOutcome,
    SaveRequest,
    Storage,
    StoredExecution,
)
from engine.workflow import replay
from engine.workflow.body import Body, CompensationFailed, Step
from engine.workflow.definition import Workflow, WorkflowDefinition
from engine.workflow.step_context import StepContext
from engine.workflow.steps import (
    Ended,
    Errored,
    StepDropped,
    Unavailable,
    is_transaction,
    run_activity,
    run_transaction,
)
from engine.workflow.tags import INTERRUPT, decode_text, deferred_of

log = logging.getLogger(__name__)

_EVENTS_PER_TURN = 200
_UNAVAILABLE_PAUSE = timedelta(milliseconds=200)
_draw = random.Random()


class Residents(Protocol):
    """The host, as its executions see it."""

    def forget(self, execution: "ResidentExecution") -> None:
        """It has left memory: ended, suspended or lost."""
        ...

    def idle(self, execution: "ResidentExecution") -> None:
        """It waits for nothing but the outside now."""
        ...

    def busy(self, execution: "ResidentExecution") -> None: ...
    def due_again(self, execution: "ResidentExecution") -> None:
        """Its row has a ``wake_at`` while it is in memory: the sweep must leave it out."""
        ...

    def settle(self, shard: OwnedShard, seqs: Sequence[int]) -> None:
        """Delete rows that came for an execution that has ended."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What an execution needs from its runner."""

    clock: Clock
    delivery: Delivery
    storage: Storage
    ids: SnowflakeGenerator
    spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]
    call_soon: Callable[[Callable[[], None]], object]
    await_exit: Callable[[Snowflake], Awaitable[Exit]]
    renew_lease: Callable[[], Awaitable[None]]


class ResidentExecution:
    """One execution of one epoch of its shard. A ``CommitSource`` of the shard's lane."""

    def __init__(
        self,
        *,
        definition: WorkflowDefinition,
        prototype: Workflow[Any, Any],
        shard: OwnedShard,
        envelope: EnvelopeRequest,
        state: StoredExecution,
        journal: Sequence[JournalRow],
        services: Services,
        residents: Residents,
    ) -> None:
        self.id = state.request_id
        self.shard = shard
        self.name = f"{state.workflow}/{state.execution_id}"
        self._definition = definition
        self._prototype = prototype
        self._envelope = envelope
        self._state = state
        self._services = services
        self._residents = residents
        self._journal = deque(journal)
        self._events: deque[Callable[[], None]] = deque()
        self._sources = {
            row.source
            for row in journal
            if row.source is not None and row.kind is not JournalKind.CALL
        }
        self._calls: dict[Snowflake, Step] = {}
        self._waiting: deque[Step] = deque()
        self._position = journal[-1].position if journal else 0
        self._at = state.started_at or _micros(services.clock.now())
        self._appended = 0
        self._flushed = 0
        self._start_durable = state.started_at is not None
        self._start_counted = False
        # what the next commit takes along
        self._rows: list[JournalRow] = []
        self._requests: list[SaveRequest] = []
        self._settled: list[int] = []
        self._reply: NewReply | None = None
        self._wake_at = state.wake_at
        self._update: ExecutionUpdate | None = self._running()
        self._dirty = False
        self._commit: Commit | None = None
        self._commit_mark = 0
        # the inbox rows it holds; one stays unsettled while it runs, so that a next owner finds it
        self._held: list[int] = []
        self._scheduled = False
        self._committing: Step | None = None
        self._alarm: Alarm | None = None
        self._alarm_at: datetime | None = None
        self._pauses: set[Alarm] = set()
        self._over = False
        self._blocked = False
        self._suspending = False
        self._quiet: asyncio.Future[None] | None = None
        self._body: Body | None = None

    # --- life -----------------------------------------------------------------------------------

    def begin(self) -> None:
        """Build the body; it runs in the next turn of the host's loop."""
        try:
            request = self._definition.request.decode(self._envelope.payload)
        except InvalidPayload as error:
            self._end(Defect(ErrorDetails.of(error)))
            return
        self._body = Body(
            prototype=self._prototype,
            request=request,
            execution_id=self._state.execution_id,
            seed=f"{self.id}:{self._state.run}",
            observed=self._clock_read,
        )
        self._body.set_time(self._at)
        self._schedule()

    def arrive(self, row: InboxRow) -> None:
        """An inbox row for this execution: its own run request, an event, or a reply."""
        self._held.append(row.seq)
        if row.kind is InboxKind.REPLY:
            self._push(partial(self._replied, row))
        elif row.envelope.request_id != self.id:
            self._push(partial(self._told, row))

    def drop(self) -> None:
        """The shard is lost or given away: nothing of this execution goes on here."""
        if self._over:
            return
        self._over = True
        self._stop_work()
        self._residents.forget(self)

    async def drain(self, grace: timedelta) -> None:
        """Start nothing new, let running steps end and be written, then leave memory."""
        if self._quiet is None and not self._over:
            self._quiet = asyncio.get_running_loop().create_future()
            self._check_quiet()
            await asyncio.wait([self._quiet], timeout=grace.total_seconds())
        self.drop()

    @property
    def status_line(self) -> str:
        """What it waits for, in words."""
        body = self._body
        if body is None:
            return ""
        waits = [f"deferred {name}" for name in body.waiting_for]
        timer = body.loop.next_timer()
        if timer is not None:
            waits.append(f"the timer due {replay.deadline_of(timer.deadline).isoformat()}")
        for step in body.steps.values():
            if step.call is not None:
                waits.append(
                    f"the reply of {step.call.entity.name}/{step.call.id} {step.call.rpc.name}"
                )
            elif step.retry_at is not None:
                waits.append(f"attempt {step.attempt} of {step} due {step.retry_at.isoformat()}")
            else:
                waits.append(str(step))
        return "waits for " + ", ".join(waits) if waits else ""

    # --- turns ------------------------------------------------------------------------------------

    def _push(self, event: Callable[[], None]) -> None:
        if self._over:
            return
        self._events.append(event)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and not self._over and not self._suspending and not self._blocked:
            self._scheduled = True
            self._residents.busy(self)
            self._services.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        if self._over or self._suspending or self._blocked:
            return
        try:
            more = self._advance()
        except NonDeterminism as error:
            self._block(str(error))
            return
        if more:
            self._schedule()
        else:
            self._after_turn()

    def _advance(self) -> bool:
        """Deliver events, each to a drained loop; True when the turn's budget ran out first."""
        body = self._body
        if body is None:
            return False
        for _ in range(_EVENTS_PER_TURN):
            if not body.loop.drain():
                return True
            if body.done:
                if self._journal:
                    raise replay.leftover(body, self._journal[0])
                return False
            if self._journal:
                self._replay(body, self._journal.popleft())
                continue
            self._note_cancellations(body)
            if self._committing is not None or not self._events:
                return False
            self._events.popleft()()
        return True

    def _replay(self, body: Body, row: JournalRow) -> None:
        replay.apply(body, row)
        self._at = max(self._at, row.at)
        if row.kind is JournalKind.CALL and row.source is not None:
            self._calls[row.source] = body.steps[row.name, row.ordinal]

    def _after_turn(self) -> None:
        body = self._body
        if self._over or self._blocked or body is None:
            return
        if body.done and self._reply is None:
            if self._committing is None:
                self._finish(body)
            return
        if self._reply is None:
            self._launch_ready(body)
            self._arm_timer(body)
        self._submit_if_dirty()
        self._check_quiet()
        if self._can_suspend(body):
            self._residents.idle(self)

    # --- commands out -----------------------------------------------------------------------------

    def _launch_ready(self, body: Body) -> None:
        """Start what the body asked for, as far as everything before it is durable.

        INVARIANT durable-before-command: ``mark`` counts the rows appended when the command was
        found; it leaves when as many have been flushed.
        """
        while body.commands:
            step = body.commands.popleft()
            if is_transaction(step):
                # Its row is written off the lane, and who finds no start looks for no journal.
                self._clock_read()
            step.mark = self._appended
            self._waiting.append(step)
        while self._waiting and self._waiting[0].mark <= self._flushed and self._quiet is None:
            step = self._waiting.popleft()
            if not step.future.done():
                self._launch(step)

    def _launch(self, step: Step) -> None:
        if step.call is not None:
            self._send(step)
        elif step.retry_at is not None and step.retry_at > self._services.clock.now():
            self._later(step.retry_at, partial(self._start, step))
        else:
            self._start(step)

    def _start(self, step: Step) -> None:
        if step.future.done() or self._over:
            return
        if self._quiet is not None:
            return  # it starts on the shard's next owner; the attempt has not begun
        if step.started_at is None:
            step.started_at = _micros(self._services.clock.now())
        step.retry_at = None
        step.task = self._services.spawn(self._attempt(step))

    async def _attempt(self, step: Step) -> None:
        definition = step.definition
        assert definition is not None
        context = StepContext(
            execution_id=self._state.execution_id,
            idempotency_key="/".join(
                (self.name, str(self.id), str(self._state.run), step.name, str(step.ordinal + 1))
            ),
            attempt=step.attempt,
        )
        result: Ended | Errored | Unavailable
        try:
            if is_transaction(step):
                result = await run_transaction(
                    self._prototype,
                    step,
                    definition,
                    context,
                    storage=self._services.storage,
                    fence=self.shard.fence,
                    position=self._ask_position,
                )
            else:
                result = await run_activity(self._prototype, step, definition, context)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            result = Errored(error, ErrorDetails.of(error), Outcome.FAILED)
        except StepDropped:
            return
        except OwnershipLost:
            if self.shard.alive:  # another owner took the shard, so this lane's lock is gone
                self.shard.lane.terminate()
            return
        finally:
            step.task = None
        if self._committing is step:
            self._committing = None
            self._events.appendleft(partial(self._ended, step, result))
            self._schedule()
        else:
            self._push(partial(self._ended, step, result))

    def _send(self, step: Step) -> None:
        """Send a call: its CALL row and the request leave in one flush."""
        call = step.call
        assert call is not None
        keyed = call.key is not None or call.rpc.key is not None
        if step.request_id is not None and not keyed:
            return  # sent before a crash; its reply comes through the inbox
        try:
            request_id = self._services.ids.next()
        except StorageUnavailable:
            step.task = self._services.spawn(self._renew_and_send(step))
            return
        if step.request_id is None:
            step.started_at = self._at
            self._append(
                JournalKind.CALL,
                step.name,
                step.ordinal,
                digest=step.digest,
                source=request_id,
                at=self._at,
            )
        step.request_id = request_id
        self._calls[request_id] = step
        envelope = call.envelope(
            request_id,
            shards_in=self._services.storage.shards_in,
            payload=step.payload,
            reply_to=ReplyTo(execution=self.id, shard=self.shard.id),
        )
        self._requests.append(SaveRequest(envelope=envelope))
        self._dirty = True

    async def _renew_and_send(self, step: Step) -> None:
        """The lease of the machine id has run out: prolong it, then send."""
        try:
            await self._services.renew_lease()
        except (StorageUnavailable, TimeoutError, OSError) as error:
            log.warning(
                "no lease of a machine id", extra={"execution": self.name, "error": str(error)}
            )
            await asyncio.sleep(_UNAVAILABLE_PAUSE.total_seconds())
        step.task = None
        if not self._over and not step.future.done():
            self._send(step)
            self._after_turn()

    def _note_cancellations(self, body: Body) -> None:
        """Steps the body cancelled: stop their attempts and write it down."""
        while body.cancelled:
            _, step = body.cancelled.popitem()
            body.steps.pop(step.key, None)
            if step.task is not None:
                step.task.cancel()
            self._append(
                JournalKind.STEP,
                step.name,
                step.ordinal,
                outcome=Outcome.CANCELLED,
                digest=step.digest,
                started_at=step.started_at,
                at=self._at,
            )

    # --- events in --------------------------------------------------------------------------------

    def _ask_position(self, step: Step, payload: bytes) -> "asyncio.Future[JournalRow]":
        """The journal row of a transaction: given when the loop is drained, and from then on no
        event is delivered until the transaction's outcome is known."""
        answer: asyncio.Future[JournalRow] = asyncio.get_running_loop().create_future()
        self._push(partial(self._give_position, step, payload, answer))
        return answer

    def _give_position(
        self, step: Step, payload: bytes, answer: "asyncio.Future[JournalRow]"
    ) -> None:
        if answer.done():
            return
        if step.future.done():
            answer.set_exception(StepDropped())
            return
        self._committing = step
        self._position += 1
        answer.set_result(
            JournalRow(
                execution=self.id,
                run=self._state.run,
                position=self._position,
                kind=JournalKind.STEP,
                name=step.name,
                ordinal=step.ordinal,
                attempt=step.attempt,
                digest=step.digest,
                at=self._tick(),
                started_at=step.started_at,
                payload=payload,
            )
        )

    def _ended(self, step: Step, result: Ended | Errored | Unavailable) -> None:
        """An attempt of a step has ended."""
        body = self._body
        if body is None or step.future.done():
            return
        match result:
            case Ended(payload, value):
                if not is_transaction(step):
                    self._append_step(step, Outcome.OK, payload)
                body.end_step(step, Outcome.OK, value)
            case Errored(error, details, outcome):
                if step.retry.retries(error, step.attempt):
                    self._retry(step, details, outcome)
                else:
                    self._append_step(step, outcome, encode_error(details))
                    body.end_step(step, outcome, details)
            case Unavailable(error):
                log.warning(
                    "a transaction could not reach the database; the same attempt follows",
                    extra={"execution": self.name, "step": str(step), "error": str(error)},
                )
                self._later(
                    self._services.clock.now() + _UNAVAILABLE_PAUSE, partial(self._start, step)
                )

    def _retry(self, step: Step, details: ErrorDetails, outcome: Outcome) -> None:
        due = _micros(self._services.clock.now() + step.retry.delay(step.attempt, _draw))
        self._append(
            JournalKind.ATTEMPT,
            step.name,
            step.ordinal,
            attempt=step.attempt,
            outcome=outcome,
            digest=step.digest,
            started_at=step.started_at,
            due_at=due,
            payload=encode_error(details),
        )
        step.attempt += 1
        step.retry_at = due
        step.mark = self._appended
        self._waiting.append(step)

    def _replied(self, row: InboxRow) -> None:
        """The exit of a call."""
        body, reply = self._body, row.reply
        step = self._calls.pop(row.envelope.request_id, None)
        settle = self._settle_later(row)
        if body is None or reply is None or step is None or step.future.done():
            settle()
            return
        self._exit_of_call(step, decode_exit(reply.kind, reply.payload), row.envelope.request_id)
        settle()

    def _exit_of_call(self, step: Step, exit: Exit, source: Snowflake) -> None:
        body = self._body
        assert body is not None
        assert step.call is not None
        if step.future.done():
            return
        match exit:
            case Success(value):
                try:
                    result = step.call.rpc.signature.result.decode(value)
                except InvalidPayload as error:
                    self._fail_call(step, ErrorDetails.of(error), source)
                    return
                self._append_step(step, Outcome.OK, value, source)
                body.end_step(step, Outcome.OK, result)
            case Failure(error) | Defect(error):
                self._fail_call(step, error, source)
            case Interrupted(reason) | Terminated(reason):
                name = type(exit).__name__
                self._fail_call(step, ErrorDetails(name, reason), source)

    def _fail_call(self, step: Step, error: ErrorDetails, source: Snowflake | None) -> None:
        body = self._body
        assert body is not None
        self._append_step(step, Outcome.FAILED, encode_error(error), source)
        body.end_step(step, Outcome.FAILED, error)

    def _told(self, row: InboxRow) -> None:
        """A message to the execution: a resolution or an interrupt."""
        body, envelope = self._body, row.envelope
        settle = self._settle_later(row)
        if body is None or envelope.request_id in self._sources:
            settle()
            return
        self._sources.add(envelope.request_id)
        try:
            self._tell(body, envelope)
        except InvalidPayload as error:
            log.warning(
                "a message to an execution could not be read and is left out",
                extra={"execution": self.name, "tag": envelope.tag, "error": str(error)},
            )
        settle()

    def _tell(self, body: Body, envelope: EnvelopeRequest) -> None:
        deferred = deferred_of(envelope.tag)
        source, payload = envelope.request_id, envelope.payload
        if deferred is not None and deferred[1]:
            self._append(JournalKind.RESOLVED, deferred[0], 0, source=source, payload=payload)
            body.resolve(deferred[0], payload)
        elif deferred is not None:
            error = ErrorDetails("Rejected", decode_text(payload))
            self._append(
                JournalKind.RESOLVED,
                deferred[0],
                0,
                outcome=Outcome.FAILED,
                source=source,
                payload=encode_error(error),
            )
            body.reject(deferred[0], error)
        elif envelope.tag == INTERRUPT:
            reason = decode_text(payload)
            self._append(JournalKind.INTERRUPT, INTERRUPT, 0, source=source, payload=payload)
            body.interrupt(reason)
        else:
            raise InvalidPayload(f"this version knows no message {envelope.tag!r}")

    def _settle_later(self, row: InboxRow) -> Callable[[], None]:
        """Delete the row with the flush that journals it, unless it is the one the execution is
        found by."""

        def settle() -> None:
            if len(self._held) > 1 and row.seq in self._held:
                self._held.remove(row.seq)
                self._settled.append(row.seq)
                self._dirty = True

        return settle

    def _fire(self, ordinal: int) -> None:
        body = self._body
        timer = None if body is None else body.loop.timers.get(ordinal)
        if body is None or timer is None:
            return
        deadline = replay.deadline_of(timer.deadline)
        self._append(
            JournalKind.TIMER, "timer", ordinal, due_at=deadline, at=max(self._tick(), deadline)
        )
        body.loop.fire(ordinal)

    # --- time -------------------------------------------------------------------------------------

    def _tick(self) -> datetime:
        """The time of an event being delivered now."""
        self._at = max(self._at, _micros(self._services.clock.now()))
        if self._body is not None:
            self._body.set_time(self._at)
        return self._at

    def _clock_read(self) -> None:
        """The body looked at its clock: until its start is durable, commands may depend on it."""
        if not self._start_durable and not self._start_counted:
            self._start_counted = True
            self._appended += 1
            self._dirty = True

    def _arm_timer(self, body: Body) -> None:
        timer = body.loop.next_timer()
        if timer is None:
            return
        deadline = replay.deadline_of(timer.deadline)
        if self._alarm is not None:
            if self._alarm_at == deadline:
                return
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self._services.clock.call_at(deadline, self._timers_due)

    def _timers_due(self) -> None:
        self._alarm = self._alarm_at = None
        body = self._body
        if body is None or self._over:
            return
        now = self._services.clock.now()
        due = sorted(
            (timer.deadline, ordinal)
            for ordinal, timer in body.loop.timers.items()
            if replay.deadline_of(timer.deadline) <= now
        )
        for _, ordinal in due:
            self._push(partial(self._fire, ordinal))
        if not due:
            self._arm_timer(body)

    def _later(self, when: datetime, then: Callable[[], None]) -> None:
        """Run ``then`` at a time, and look what it left to write."""

        def ring() -> None:
            self._pauses.discard(alarm)
            if not self._over and not self._suspending:
                then()
                self._after_turn()

        alarm = self._services.clock.call_at(when, ring)
        self._pauses.add(alarm)

    # --- journal and commits ----------------------------------------------------------------------

    def _append_step(
        self, step: Step, outcome: Outcome, payload: bytes, source: Snowflake | None = None
    ) -> None:
        self._append(
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

    def _append(
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
    ) -> None:
        if at is None:
            at = self._tick()
        elif at > self._at:
            self._at = at
            if self._body is not None:
                self._body.set_time(at)
        self._position += 1
        self._appended += 1
        self._dirty = True
        self._rows.append(
            JournalRow(
                execution=self.id,
                run=self._state.run,
                position=self._position,
                kind=kind,
                name=name,
                ordinal=ordinal,
                at=at,
                attempt=attempt,
                outcome=outcome,
                digest=digest,
                started_at=started_at,
                due_at=due_at,
                source=source,
                payload=payload,
            )
        )

    def _running(self) -> ExecutionUpdate:
        return ExecutionUpdate(
            request_id=self.id,
            run=self._state.run,
            status=Status.RUNNING,
            started_at=self._at,
            wake_at=self._wake_at,
        )

    def _submit_if_dirty(self) -> None:
        if self._dirty and self._commit is None and not self._over:
            try:
                self.shard.submit(self)
            except OwnershipLost:
                self.drop()

    def collect(self) -> Commit | None:
        if self._over or self._commit is not None:
            return None
        commit = Commit(
            shard=self.shard.id,
            journal=self._rows,
            replies=[] if self._reply is None else [self._reply],
            requests=self._requests,
            settled=self._settled,
            execution=self._update,
        )
        self._rows, self._requests, self._settled, self._update = [], [], [], None
        self._dirty = False
        self._commit = commit
        self._commit_mark = self._appended
        return commit

    def committed(self, flushed: Flushed) -> None:
        commit = self._commit
        if self._over or commit is None:
            return
        self._commit = None
        self._flushed = self._commit_mark
        if commit.execution is not None:
            self._start_durable = True
        self._services.delivery.committed(self.shard, commit, flushed)
        if commit.replies:
            self._leave()
            return
        if self._suspending:
            self._suspended()
            return
        for request in commit.requests:
            saved = flushed.requests[request.envelope.request_id]
            if saved.outcome is SaveOutcome.EXISTS:
                self._join_existing(request, saved.request_id, saved.payload)
        self._after_turn()

    def refused(self, error: BadBatch) -> None:
        """The database will not take this execution's rows; going on would only repeat it."""
        self._commit = None
        self._rows, self._requests, self._settled = [], [], []
        self._reply = None
        self._block(f"its journal was refused by the database: {error}")

    def _join_existing(
        self, request: SaveRequest, existing: Snowflake, payload: bytes | None
    ) -> None:
        """A keyed call whose key is taken: share that request's reply."""
        step = self._calls.pop(request.envelope.request_id, None)
        if step is None or step.future.done():
            return
        if payload is not None and not same_json(payload, request.envelope.payload):
            error = ErrorDetails.of(
                PayloadConflict(f"the key of {step.name} was used before with other arguments")
            )
            self._push(partial(self._fail_call, step, error, None))
            return

        async def wait() -> None:
            exit = await self._services.await_exit(existing)
            self._push(partial(self._exit_of_call, step, exit, existing))

        step.task = self._services.spawn(wait())

    # --- the end, one way or another --------------------------------------------------------------

    def _finish(self, body: Body) -> None:
        task = body.task
        if body.loop.fatal is not None:
            self._end(Failure(ErrorDetails.of(body.loop.fatal)))
        elif task.cancelled():
            if body.interrupted is not None:
                self._end(Interrupted(body.interrupted))
            else:
                self._end(Failure(ErrorDetails("CancelledError", "the body cancelled itself")))
        elif (error := task.exception()) is not None:
            if isinstance(error, CompensationFailed):
                self._block(f"a compensation failed and waits to be retried: {error}")
            else:
                self._end(Failure(ErrorDetails.of(error)))
        else:
            try:
                self._end(Success(self._definition.result.encode(task.result())))
            except InvalidPayload as unencodable:
                self._end(Failure(ErrorDetails.of(unencodable)))

    def _end(self, exit: Exit) -> None:
        """Write the exit; it leaves with every row before it."""
        self._stop_work()
        kind, payload = encode_exit(exit)
        self._reply = NewReply(
            request_id=self.id,
            sequence=0,
            kind=kind,
            payload=payload,
            reply_to=self._envelope.reply_to,
        )
        self._settled.extend(self._held)
        self._held = []
        self._update = ExecutionUpdate(
            request_id=self.id,
            run=self._state.run,
            status=_STATUS[type(exit)],
            started_at=self._at,
            finished_at=_micros(max(self._at, self._services.clock.now())),
        )
        self._dirty = True
        self._submit_if_dirty()

    def _block(self, reason: str) -> None:
        """Run nothing more here, keep the row that a next owner finds it by, and say why."""
        self._stop_work()
        self._blocked = True
        self._update = ExecutionUpdate(
            request_id=self.id,
            run=self._state.run,
            status=Status.BLOCKED,
            started_at=self._at,
            wake_at=self._wake_at,
            waiting=reason,
        )
        log.warning("an execution is blocked", extra={"execution": self.name, "reason": reason})
        self._dirty = True
        self._submit_if_dirty()

    def _leave(self) -> None:
        """The exit is durable. Rows that came meanwhile are of no use any more."""
        self._over = True
        self._residents.forget(self)
        if self._held:
            self._residents.settle(self.shard, self._held)

    # --- suspension -------------------------------------------------------------------------------

    def _can_suspend(self, body: Body) -> bool:
        busy = (
            self._scheduled
            or self._events
            or self._journal
            or self._dirty
            or self._commit is not None
            or self._committing is not None
            or self._waiting
            or self._quiet is not None
            or self._reply is not None
        )
        return not busy and all(
            step.task is None and (step.call is not None or step.retry_at is not None)
            for step in body.steps.values()
        )

    def suspend(self) -> None:
        """Leave memory if there is nothing to do: the host calls this after a while of idleness."""
        body = self._body
        if self._over or self._blocked or self._suspending or body is None:
            return
        if not self._can_suspend(body):
            return
        wakes = [step.retry_at for step in body.steps.values() if step.retry_at is not None]
        timer = body.loop.next_timer()
        if timer is not None:
            wakes.append(replay.deadline_of(timer.deadline))
        self._suspending = True
        self._wake_at = min(wakes, default=None)
        self._update = ExecutionUpdate(
            request_id=self.id,
            run=self._state.run,
            status=Status.SUSPENDED,
            started_at=self._at,
            wake_at=self._wake_at,
            waiting=self.status_line or None,
        )
        self._settled.extend(self._held)
        self._held = []
        self._dirty = True
        self._submit_if_dirty()

    def _suspended(self) -> None:
        """The suspension is durable; what came meanwhile holds a row of its own and goes on."""
        self._suspending = False
        if self._events or self._held:
            if self._wake_at is not None:
                self._residents.due_again(self)
            self._update = self._running()
            self._schedule()
            return
        self._over = True
        self._stop_work()
        self._residents.forget(self)
        if self._wake_at is not None:
            self._services.delivery.due_at(self._wake_at)

    def _stop_work(self) -> None:
        for alarm in (self._alarm, *self._pauses):
            if alarm is not None:
                alarm.cancel()
        self._alarm = None
        self._pauses.clear()
        body = self._body
        if body is not None:
            for step in body.steps.values():
                if step.task is not None:
                    step.task.cancel()
            body.close()
        self._check_quiet()

    def _check_quiet(self) -> None:
        quiet = self._quiet
        if quiet is None or quiet.done():
            return
        writing = self._dirty or self._commit is not None
        body = self._body
        running = not self._blocked and (
            bool(self._events)
            or self._committing is not None
            or (body is not None and any(step.task for step in body.steps.values()))
        )
        if self._over or not (writing or running):
            quiet.set_result(None)


_STATUS: dict[type[Exit], Status] = {
    Success: Status.SUCCEEDED,
    Failure: Status.FAILED,
    Defect: Status.FAILED,
    Interrupted: Status.INTERRUPTED,
    Terminated: Status.TERMINATED,
}


def _micros(when: datetime) -> datetime:
    """As PostgreSQL stores it: microseconds, UTC."""
    return when.astimezone(UTC)
