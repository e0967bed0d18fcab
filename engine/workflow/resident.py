"""An execution in this runner's memory: its life, and the turns in which its events are delivered.

Inbox rows and the ends of steps come in as events; ``incoming`` makes each a journal row and hands
it to the body; ``outgoing`` starts what the body asks for; ``ledger`` leaves with the shard's lane.
"""

import asyncio
import json
import logging
from collections import deque
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from engine.cluster.shard import OwnedShard
from engine.core.clock import Alarm
from engine.core.errors import (
    EngineError,
    ErrorDetails,
    InvalidPayload,
    NonDeterminism,
    OwnershipLost,
    StorageUnavailable,
)
from engine.core.ids import EntityAddress, Snowflake
from engine.core.journal import JournalKind, JournalRow
from engine.core.reply import (
    Defect,
    Exit,
    Failure,
    Interrupted,
    Success,
    Terminated,
)
from engine.core.status import Status
from engine.storage.protocol import (
    SUSPECT,
    BadBatch,
    Commit,
    Flushed,
    InboxKind,
    InboxRow,
    LoadedExecution,
    exit_reply,
)
from engine.storage.standings import MISFIT
from engine.workflow import replay
from engine.workflow.body import TOO_LATE, Body, CompensationFailed, ContinueAsNew
from engine.workflow.definition import Workflow, WorkflowDefinition
from engine.workflow.incoming import Incoming
from engine.workflow.ledger import Ledger
from engine.workflow.outgoing import Event, Outgoing, Result, Services
from engine.workflow.pause import EXECUTION, WORKFLOW, pauses_of, told
from engine.workflow.query import Query
from engine.workflow.repair import Order, Origin, retried
from engine.workflow.step import Step
from engine.workflow.steps import StepDropped
from engine.workflow.tags import (
    PAUSE,
    RESUME,
    RETRY,
    TERMINATE,
    deadline_in,
    decode_order,
    decode_reason,
    update_of,
)

log: logging.Logger = logging.getLogger(__name__)

_EVENTS_PER_TURN = 200
_NO_JOURNAL = deque[JournalRow](maxlen=0)
"""Of all that have just begun. An empty deque takes as much room as twelve empty lists."""
_AGAIN = 1.0


class Residents(Protocol):
    """The host, as its executions see it."""

    def forget(self, execution: "ResidentExecution") -> None:
        """It has left memory: ended, suspended or lost."""
        ...

    def idle(self, execution: "ResidentExecution") -> None:
        """It waits for nothing but the outside now."""
        ...

    def busy(self, execution: "ResidentExecution") -> None: ...
    def again(self, shard: OwnedShard, address: EntityAddress, queries: Sequence[Query]) -> None:
        """Queries that it could not answer any more."""
        ...

    def paused(self, execution: "ResidentExecution", seqs: Sequence[int]) -> None:
        """It has left memory until it is resumed, and what came for it with these rows waits."""
        ...

    def resumption(self, workflow: str) -> bytes:
        """Who has resumed a workflow, and why: the payload of a row that says so."""
        ...

    def due_again(self, execution: "ResidentExecution") -> None:
        """Its row has a ``wake_at`` while it is in memory: the sweep must leave it out."""
        ...

    def settle(
        self, shard: OwnedShard, seqs: Sequence[int], *, late: Sequence[InboxRow] = ()
    ) -> None:
        """Delete rows that came for an execution that has ended. ``late`` are those of them that
        it was not handed."""
        ...


class ResidentExecution:
    """One execution of one epoch of its shard. A ``CommitSource`` of the shard's lane."""

    __slots__ = (
        "_accused",
        "_again",
        "_alarm",
        "_alarm_at",
        "_attributes",
        "_blocked",
        "_body",
        "_committing",
        "_deadline",
        "_definition",
        "_envelope",
        "_events",
        "_incoming",
        "_journal",
        "_kept",
        "_ledger",
        "_loaded",
        "_looked",
        "_outgoing",
        "_over",
        "_prototype",
        "_queries",
        "_quiet",
        "_renewed",
        "_residents",
        "_scheduled",
        "_services",
        "_state",
        "_suspending",
        "_undelivered",
        "_undoing",
        "id",
        "name",
        "place",
        "shard",
    )

    def __init__(
        self,
        *,
        definition: WorkflowDefinition,
        prototype: Workflow[Any, Any],
        shard: OwnedShard,
        loaded: LoadedExecution,
        services: Services,
        residents: Residents,
    ) -> None:
        state, envelope, journal = loaded.execution, loaded.envelope, loaded.journal
        self.id: Snowflake = state.request_id
        self.place: tuple[str, str] = (state.workflow, state.execution_id)
        self.shard = shard
        self.name: str = f"{state.workflow}/{state.execution_id}"
        self._definition = definition
        self._loaded = loaded
        self._envelope = envelope
        self._services = services
        self._residents = residents
        self._journal = deque(journal) if journal else _NO_JOURNAL
        self._events: deque[Event] = deque()
        self._ledger = Ledger(
            state,
            version=definition.version,
            begun_at=replay.begun_at(loaded),
            last_position=journal[-1].position if journal else 0,
            clock=services.clock,
        )
        self._outgoing = Outgoing(
            state=state,
            origin=Origin.of(loaded),
            trace=envelope.trace,
            prototype=prototype,
            shard=shard,
            ledger=self._ledger,
            services=services,
            ended=self._step_ended,
            lapsed=self._step_lapsed,
            answered=self._answered,
            position=self._ask_position,
            look=self._after_turn,
        )
        self._state = state
        self._attributes: dict[str, object] = (
            {} if state.attributes is None else json.loads(state.attributes)
        )
        self._prototype = prototype
        self._body: Body | None = None
        self._incoming: Incoming | None = None
        self._scheduled = False
        self._committing: Step | None = None
        self._alarm: Alarm | None = None
        self._alarm_at: datetime | None = None
        self._over = False
        self._accused = False
        self._again = False
        self._blocked = False
        self._renewed = False
        self._undoing = False
        self._suspending = False
        self._quiet: asyncio.Future[None] | None = None
        self._undelivered: dict[int, InboxRow] = {}
        self._kept: list[InboxRow] = []
        self._queries: list[Query] = []
        self._looked: list[tuple[int, Query, Exit]] = []
        self._deadline: datetime | None = None

    @property
    def _in(self) -> Incoming:
        assert self._incoming is not None
        return self._incoming

    # --- life -------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Build the body, which runs in the next turn of the host's loop: at once, or on trial when
        its process was lost too often."""
        failures = self._state.failures
        if self._again:
            self._submit()
        elif (told := replay.undecodable(self._loaded)) is not None:
            self._block(told)
        elif failures >= self._services.delivery.max_deliveries:
            self._block(
                f"its process was lost {failures} times with it in hand, and it got no further in"
                f" between: correct what kills it, then 'outlast retry {self.name}'"
            )
        elif failures >= SUSPECT:
            self._accused = True
            self._services.delivery.trials.ask(self, failures, self._try)
        else:
            self._build()

    def _try(self) -> None:
        # INVARIANT tried-first: that it is on trial is stored before it can do any harm.
        if not self._again:
            self._ledger.begin_trial()
            self._submit()

    def _asked_again(self, row: InboxRow) -> None:
        """Somebody wants it to go on although it is blocked, or is about to be."""
        if self._undoing:
            self._undoing = False
            self._services.spawn(self._undo_again(row))
            return
        self._again = self._blocked = True
        source, payload = row.envelope.request_id, row.envelope.payload
        self._ledger.append(JournalKind.RETRIED, RETRY, 0, source=source, payload=payload)
        self._ledger.drop(row.seq)
        self._ledger.acquit()
        self._submit()

    async def _undo_again(self, row: InboxRow) -> None:
        """Let the compensation that failed, and those behind it, be tried anew, in a new run."""
        storage = self._services.storage
        try:
            (loaded,) = await storage.load([self.id])
            calls = [row.source for row in loaded.journal if row.kind is JournalKind.CALL]
            found = await storage.load([source for source in calls if source is not None])
        except (StorageUnavailable, TimeoutError, OSError) as error:
            log.warning("a retry has to wait", extra={"execution": self.name, "error": str(error)})
            await asyncio.sleep(_AGAIN)
            self._undoing = True
            if not self._over:
                self._asked_again(row)
            return
        if self._over:
            return
        children = {each.execution.request_id: each.execution.execution_id for each in found}
        _, by = decode_order(row.envelope.payload)
        order = Order(by=by, at=self._services.clock.now())
        self._ledger.drop(row.seq)
        self._ledger.repair(retried(loaded, children, order=order))
        self._go_on_anew()

    def _go_on_anew(self) -> None:
        """The present run is over: be read again with the next, and with what was not delivered."""
        self._renewed = True
        for seq in [seq for seq in self._ledger.held if seq not in self._undelivered]:
            self._ledger.drop(seq)
        self._find_by_time()
        self._submit()

    def _drop(self, row: InboxRow) -> None:
        """Delete a row in one flush with its event, since nothing would tell it from a new one."""
        self._ledger.drop(row.seq)
        if not self._ledger.held:
            self._find_by_time()

    def _find_by_time(self) -> None:
        """It holds no row of which a next owner could learn of it: let it be due instead."""
        self._ledger.wake_at = self._ledger.at
        self._ledger.set_status(Status.RUNNING)
        self._residents.due_again(self)

    def _begin_again(self) -> None:
        """That its failures are forgotten, or its run is over, is durable: leave memory, and be
        read anew."""
        self._over = True
        self._stop_work()
        self._residents.forget(self)
        for seq in self._ledger.held:
            self.shard.give_back(seq, self.id)
        self.shard.lane.ring((self.shard.id,))
        self._free()

    def _build(self) -> None:
        try:
            self._deadline = deadline_in(self._envelope.headers)
            self._body = replay.body_of(
                self._definition, self._prototype, self._loaded, observed=self._ledger.need_start
            )
        except InvalidPayload as error:
            self._end(Defect(ErrorDetails.of(error)))
            return
        self._ledger.moved = self._body.set_time
        self._ledger.moved(self._ledger.at)
        self._incoming = Incoming(
            name=self.name,
            body=self._body,
            ledger=self._ledger,
            outgoing=self._outgoing,
            clock=self._services.clock,
            seen={
                row.source
                for row in self._journal
                if row.source is not None and row.kind is not JournalKind.CALL
            },
        )
        if WORKFLOW in pauses_of(self._journal):
            self.resume()
        self._schedule()

    def arrive(self, row: InboxRow) -> None:
        """An inbox row for this execution: its own run request, an event, or a reply."""
        self._ledger.held.append(row.seq)
        if row.told == RETRY and self._still_blocked:
            self._asked_again(row)
        elif row.kind is InboxKind.REQUEST and row.envelope.request_id == self.id:
            return
        elif self._blocked and row.told == TERMINATE:
            self._terminate(row)
        elif not self._over:
            self._undelivered[row.seq] = row
            self._push(partial(self._deliver, row))

    @property
    def _still_blocked(self) -> bool:
        """Whether it is blocked, or is to be before anything of it runs."""
        return self._blocked or (self._body is None and self._state.failures >= SUSPECT)

    def _deliver(self, row: InboxRow) -> None:
        """A message's turn has come."""
        del self._undelivered[row.seq]
        if row.told == RETRY:
            self._ledger.settle(row.seq)  # it is not blocked
            return
        if row.told in (PAUSE, RESUME):
            self._told_of_pause(row)
        elif self._ledger.paused and row.told != TERMINATE:
            self._undelivered[row.seq] = row
            self._kept.append(row)
        elif row.kind is InboxKind.REPLY:
            self._in.replied(row)
        elif row.kind is InboxKind.INTERRUPT:
            self._in.interrupted()
            self._drop(row)
        elif row.told == TERMINATE:
            self._terminate(row)
        else:
            self._in.told(row)

    # --- pauses -----------------------------------------------------------------------------------

    def pause(self, payload: bytes) -> None:
        """Its whole workflow is paused."""
        self._push(partial(self._pause, WORKFLOW, payload))

    def resume(self) -> None:
        """Its workflow is not paused any more."""
        payload = self._residents.resumption(self._definition.name)
        self._push(partial(self._resume, WORKFLOW, payload))

    def _told_of_pause(self, row: InboxRow) -> None:
        envelope = row.envelope
        if self._in.is_new(envelope.request_id):
            apply = self._pause if envelope.tag == PAUSE else self._resume
            apply(EXECUTION, envelope.payload, envelope.request_id)
        self._ledger.settle(row.seq)

    def _pause(self, name: str, payload: bytes, source: Snowflake | None = None) -> None:
        """Start nothing from now on. What runs of its steps ends, and the body sees that: an
        attempt is not begun anew for a pause, and its result has one place in the journal."""
        ledger = self._ledger
        if name in ledger.paused:
            return
        ledger.append(JournalKind.PAUSED, name, 0, source=source, payload=payload)
        ledger.set_status(Status.PAUSED, waiting=self._paused_in_words())

    def _resume(self, name: str, payload: bytes, source: Snowflake | None = None) -> None:
        ledger, body = self._ledger, self._body
        if name not in ledger.paused or body is None:
            return
        ledger.append(JournalKind.RESUMED, name, 0, source=source, payload=payload)
        if ledger.paused:
            return
        ledger.set_status(Status.RUNNING)
        self._events.extendleft(partial(self._deliver, row) for row in reversed(self._kept))
        self._kept.clear()
        if self._quiet is None:
            self._outgoing.resume(body)

    def _paused_in_words(self) -> str:
        """Why it stands still."""
        found = [
            f"{'with its whole workflow ' if name == WORKFLOW else ''}{told(row.payload, row.at)}"
            for name, row in self._ledger.paused.items()
        ]
        return ", and ".join(found)

    def _stand_still(self, body: Body) -> None:
        """Start nothing, and leave memory once nothing of it runs any more."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        if self.running or self._busy:
            return
        self._suspending = True
        for seq in [seq for seq in self._ledger.held if seq not in self._undelivered]:
            self._ledger.drop(seq)
        # Of a workflow that is resumed its shards' owners look for what is due.
        self._ledger.wake_at = None if self.alone else self._services.clock.now()
        self._ledger.set_status(Status.PAUSED, waiting=self._paused_in_words())
        self._submit()

    def ask(self, query: Query) -> None:
        """Answer a query as soon as what it sees is durable."""
        self._queries.append(query)
        if self._blocked:
            self._answer_queries()
        else:
            self._schedule()

    def _answer_queries(self) -> None:
        """Let them look at a body that has drained and replayed all; one that is blocked stands
        where its journal fits no more."""
        body = self._body
        if self._blocked:
            for query in self._queries:
                query.fail(EngineError(f"{self.name} is blocked: see why with describe()"))
        elif body is None or self._journal:
            return
        else:
            for query in self._queries:
                exit = query.put_to(self._definition, body)
                self._looked.append((self._ledger.mark, query, exit))
        self._queries.clear()
        # INVARIANT durable-before-command: also an answer is something that others go on from.
        while self._looked and self._ledger.durable(self._looked[0][0]):
            _, query, exit = self._looked.pop(0)
            query.answers.end(exit)

    def drop(self) -> None:
        """The shard is lost or given away: nothing of this execution goes on here."""
        if not self._over:
            self._over = True
            self._stop_work()
            self._residents.forget(self)
            self._free()

    @property
    def alone(self) -> bool:
        """Whether it is paused by itself, not only with its workflow."""
        return EXECUTION in self._ledger.paused

    @property
    def running(self) -> list[asyncio.Task[None]]:
        """The attempts of its steps that run now. Who waits for another's reply runs nothing."""
        steps = () if self._body is None else self._body.steps.values()
        return [step.task for step in steps if step.task is not None and step.call is None]

    async def drain(self, grace: timedelta) -> None:
        """Start nothing new, let running steps end and be written, then leave memory."""
        if self._quiet is None and not self._over:
            self._quiet = asyncio.get_running_loop().create_future()
            self._outgoing.paused = True
            self._check_quiet()
            await asyncio.wait([self._quiet], timeout=grace.total_seconds())
        self.drop()

    # --- turns ------------------------------------------------------------------------------------

    @property
    def _still(self) -> bool:
        """Whether its body is to run no further here."""
        return self._over or self._suspending or self._blocked or self._renewed

    def _push(self, event: Event) -> None:
        if not self._over:
            self._events.append(event)
            self._schedule()

    def _schedule(self) -> None:
        if not (self._scheduled or self._still):
            self._scheduled = True
            self._residents.busy(self)
            self._services.call_soon(self._turn)

    def _turn(self) -> None:
        self._scheduled = False
        body = self._body
        if self._still or body is None:
            return
        try:
            more = self._advance(body)
        except (NonDeterminism, InvalidPayload) as error:
            self._block(f"{MISFIT}{error}")
        except Exception as error:  # noqa: BLE001 -- it is logged, and shown
            self._give_up(error)
        else:
            if more:
                self._schedule()
            else:
                self._after_turn()

    def _advance(self, body: Body) -> bool:
        """Deliver events, each to a drained loop; True when the turn's budget ran out first."""
        incoming, journal = self._in, self._journal
        for _ in range(_EVENTS_PER_TURN):
            if not body.drain():
                return True
            if not journal:
                incoming.answer()
            if body.done:
                if not journal:
                    return False
                replay.check_behind(body, journal[0])
            if journal:
                row = journal.popleft()
                replay.apply(body, row)
                incoming.replayed(row)
                continue
            if body.cancelled:
                incoming.cancelled()
            if self._ledger.reply is not None:
                return False  # it was terminated
            # INVARIANT transaction-first: while one commits, no event takes a position after its.
            if self._committing is not None or not self._events:
                return False
            self._events.popleft()()
        return True

    def _after_turn(self) -> None:
        body = self._body
        if self._still or body is None:
            self._submit()
            return
        try:
            self._go_on(body)
        except Exception as error:  # noqa: BLE001 -- it is logged, and shown
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        """What nobody foresaw is seen at least: an execution must not just stand still."""
        log.error("an execution cannot go on here", extra={"execution": self.name}, exc_info=error)
        self._block(f"it met an error of the engine: {error!r}; please report it")

    def _go_on(self, body: Body) -> None:
        if self._queries or self._looked:
            self._answer_queries()
        if body.described and not self._journal:
            self._describe(body)
        if self._ledger.paused:
            self._outgoing.paused = True
        if self._ledger.reply is None:
            if body.done:
                if self._committing is None:
                    self._finish(body)
                return
            self._outgoing.launch_ready(body)
            if self._committing is None and not self._ledger.paused:
                self._arm_timer(body)  # else what is due stays due until that is over
        self._submit()
        self._check_quiet()
        if self._ledger.paused:
            self._stand_still(body)
        elif self._can_suspend(body):
            self._residents.idle(self)

    def _describe(self, body: Body) -> None:
        """Write the attributes that the body has given it, on top of those it had. A replay gives
        it the same again, and there is nothing to write."""
        merged = {**self._attributes, **body.described}
        body.described.clear()
        merged = {name: value for name, value in merged.items() if value is not None}
        payload = json.dumps(merged, sort_keys=True)
        if payload != json.dumps(self._attributes, sort_keys=True):
            self._ledger.describe(payload.encode())
        self._attributes = merged

    def _step_lapsed(self, step: Step, attempt: int) -> None:
        if not self._over:
            self._push(partial(self._unless_paused, partial(self._in.lapsed, step, attempt)))

    def _step_ended(self, step: Step, result: Result) -> None:
        """An attempt has ended: as an event, but that of a committed transaction comes first."""
        if self._over:
            return
        event = partial(self._in.ended, step, result)
        if self._committing is not step:
            self._events.append(event)
        else:
            self._committing = None
            self._events.appendleft(event)
        self._schedule()

    def _answered(self, step: Step, exit: Exit, source: Snowflake | None) -> None:
        if not self._over:
            self._push(partial(self._in.answered, step, exit, source))

    def _ask_position(self, step: Step, payload: bytes) -> "asyncio.Future[JournalRow]":
        """The journal row of a transaction: given when the loop is drained, and from then on no
        event is delivered until the transaction's outcome is known."""
        answer: asyncio.Future[JournalRow] = asyncio.get_running_loop().create_future()

        def give() -> None:
            if answer.done():
                return
            if step.future.done():
                answer.set_exception(StepDropped())
                return
            self._committing = step
            answer.set_result(self._ledger.transaction_row(step, payload))

        self._push(give)
        return answer

    # --- time -------------------------------------------------------------------------------------

    def _unless_paused(self, event: Event) -> None:
        """What falls due during a pause does so again when it is over."""
        if not self._ledger.paused:
            event()

    def _arm_timer(self, body: Body) -> None:
        if self._deadline is None and not body.loop.timers:
            return
        timer = body.loop.next_timer()
        deadlines = [] if timer is None else [replay.deadline_of(timer.deadline)]
        if self._deadline is not None and not body.overdue:
            deadlines.append(self._deadline)
        if not deadlines:
            return
        deadline = min(deadlines)
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
            self._push(partial(self._unless_paused, partial(self._in.fired, ordinal)))
        overdue = self._deadline is not None and self._deadline <= now and not body.overdue
        if overdue:
            self._push(partial(self._unless_paused, self._in.expired))
        if not due and not overdue:
            self._arm_timer(body)

    # --- the lane's side --------------------------------------------------------------------------

    def _submit(self) -> None:
        if self._ledger.ready and not self._over:
            try:
                self.shard.submit(self)
            except OwnershipLost:
                self.drop()

    def collect(self) -> Commit | None:
        return None if self._over else self._ledger.collect(self.shard.id)

    def committed(self, flushed: Flushed) -> None:
        commit = self._ledger.committed()
        if commit is None:
            return
        self._services.delivery.committed(self.shard, commit, flushed)
        if self._over:
            return
        self._submit()  # what did not fit into that commit
        self._end_trial()
        if self._ledger.reply is not None and self._ledger.reply in commit.replies:
            self._leave()
            return
        if self._again or self._renewed:
            if self._ledger.busy:
                self._submit()
            else:
                self._begin_again()
            return
        if self._suspending:
            self._suspended()
            return
        for request in commit.requests:
            saved = flushed.requests[request.envelope.request_id]
            self._outgoing.saved(request, saved)
        if self._blocked:
            self._check_quiet()
        elif self._body is not None:
            self._after_turn()
        elif self._quiet is None:
            self._build()
        else:
            self._check_quiet()

    def refused(self, error: BadBatch) -> None:
        """The database will not take this execution's rows; going on would only repeat it."""
        self._ledger.discard()
        self._again = False
        self._block(f"its journal was refused by the database: {error}")

    # --- the end, one way or another --------------------------------------------------------------

    def _finish(self, body: Body) -> None:
        task = body.task
        if body.loop.fatal is not None:
            self._end(Failure(ErrorDetails.of(body.loop.fatal)))
        elif task.cancelled():
            if body.overdue:
                self._end(Failure(ErrorDetails("TimeoutError", "it did not end in its time")))
            elif body.interrupted is not None:
                self._end(Interrupted(body.interrupted))
            else:
                self._end(Failure(ErrorDetails("CancelledError", "the body cancelled itself")))
        elif (error := task.exception()) is not None:
            if isinstance(error, ContinueAsNew):
                self._continue(error.payload)
            elif isinstance(error, CompensationFailed):
                self._undoing = True
                self._block(f"a compensation failed and waits to be retried: {error}")
            else:
                self._end(Failure(self._definition.details_of(error)))
        else:
            try:
                codec = self._definition.result
                payload = self._services.limit.check(codec.encode(task.result()), codec.what)
            except InvalidPayload as unstorable:
                self._end(Failure(ErrorDetails.of(unstorable)))
            else:
                self._end(Success(payload))

    def _terminate(self, row: InboxRow) -> None:
        """End it, wherever it stands."""
        reason = decode_reason(row.envelope.payload)
        self._ledger.append(
            JournalKind.TERMINATED,
            TERMINATE,
            0,
            source=row.envelope.request_id,
            payload=row.envelope.payload,
        )
        self._end(Terminated(reason))

    def _close_run(self) -> None:
        """What a run leaves behind: its children are told, its updates answered."""
        if self._body is not None:
            for step, child in self._body.children:
                self._outgoing.release(step, child, self._in.farewell())
            for step, child in self._body.abandoned:
                self._outgoing.start_abandoned(step, child)
            for answer in self._body.unanswered:
                self._ledger.answer(answer.source, answer.exit)
            for step in self._body.steps.values():
                self._ledger.still(step)

    def _continue(self, request: bytes) -> None:
        """Begin the next run: it is read anew, with what was not delivered to this one."""
        self._close_run()
        self._stop_work()
        self._ledger.begin_run(request)
        self._go_on_anew()

    def _end(self, exit: Exit) -> None:
        self._close_run()
        self._stop_work()
        for row in self._undelivered.values():
            if update_of(row.told) is not None:
                self._ledger.answer(row.envelope.request_id, TOO_LATE)
        self._undelivered.clear()
        reply = exit_reply(self.id, exit, self._envelope.reply_to)
        error = exit.error.root.type if isinstance(exit, Failure | Defect) else None
        if error is not None:
            log.info(
                "an execution fails: 'outlast show' says why",
                extra={"execution": self.name, "error": error},
            )
        self._ledger.end(_STATUS[type(exit)], reply, error=error)
        self._submit()

    def _block(self, reason: str) -> None:
        """Run nothing more here, keep the row that a next owner finds it by, and say why."""
        self._stop_work()
        self._blocked = True
        self._ledger.set_status(Status.BLOCKED, waiting=reason)
        self._answer_queries()
        # The reason is left out: it may quote what a user said.
        log.warning(
            "an execution is blocked: 'outlast why' says what to do", extra={"execution": self.name}
        )
        for row in [*self._undelivered.values()]:  # they came while the journal was being replayed
            if row.told in (RETRY, TERMINATE):
                del self._undelivered[row.seq]
                self._terminate(row) if row.told == TERMINATE else self._asked_again(row)
                return
        self._submit()

    def _leave(self) -> None:
        """The exit is durable. Rows that came meanwhile are of no use any more."""
        self._over = True
        self._residents.forget(self)
        if self._ledger.held:
            late = [*self._undelivered.values()]
            self._residents.settle(self.shard, self._ledger.held, late=late)
        self._check_quiet()
        self._free()

    # --- suspension -------------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        """Whether something is under way besides steps, so that it cannot leave memory."""
        return bool(
            self._scheduled
            or self._events
            or self._journal
            or self._ledger.busy
            or self._committing is not None
            or self._quiet is not None
            or self._ledger.reply is not None
        )

    def _can_suspend(self, body: Body) -> bool:
        if self._outgoing.waiting:
            return False
        for step in body.steps.values():
            if step.task is not None and not step.followed:
                return False
            away = step.call is not None or step.postponed or step.retry_at is not None
            if step.completion is not None or not away:
                return False
        return not (self._busy or self._ledger.paused)

    def sleeps_beyond(self, at: datetime) -> bool:
        """Whether it waits for a time after that, its timer's and its own limit's, and for nothing
        that may come sooner: neither for a deferred or a step, nor may anybody call it."""
        body = self._body
        if body is None or body.loop.next_timer() is None or min(self._wakes(body)) <= at:
            return False
        others = body.steps or self._definition.handlers or body.waiting_for or body.conditions
        return not others

    def _wakes(self, body: Body) -> list[datetime]:
        """When it has to go on by itself."""
        times = (at for step in body.steps.values() for at in (step.retry_at, step.due_at))
        wakes = [at for at in times if at is not None]
        if self._deadline is not None and not body.overdue:
            wakes.append(self._deadline)
        timer = body.loop.next_timer()
        if timer is not None:
            wakes.append(replay.deadline_of(timer.deadline))
        return wakes

    def suspend(self) -> None:
        """Leave memory if there is nothing to do: the host calls this after a while of idleness."""
        body = self._body
        if self._still or body is None:
            return
        if not self._can_suspend(body):
            return
        self._suspending = self._outgoing.paused = True
        self._ledger.wake_at = min(self._wakes(body), default=None)
        self._ledger.set_status(Status.SUSPENDED, waiting=replay.waits(body))
        self._ledger.settle_all()
        self._submit()

    def _suspended(self) -> None:
        """The suspension is durable; what came meanwhile has a row of its own and goes on here."""
        self._suspending = False
        wake_at, body, paused = self._ledger.wake_at, self._body, self._ledger.paused
        if body is not None and paused and self._events:
            if wake_at is not None:
                self._residents.due_again(self)
            self._schedule()
            return
        if body is not None and not paused and (self._events or self._ledger.held):
            if self._quiet is None:
                self._outgoing.resume(body)
            if wake_at is not None:
                self._residents.due_again(self)
            self._ledger.set_status(Status.RUNNING, flush=False)
            self._schedule()
            return
        self._over = True
        self._stop_work()
        self._residents.forget(self)
        if paused:
            self._residents.paused(self, [*self._ledger.held])
        self._free()
        if wake_at is not None:
            self._services.delivery.due_at(wake_at)

    def _pass_on_queries(self) -> None:
        queries = [*self._queries, *(query for _, query, _ in self._looked)]
        self._queries.clear()
        self._looked.clear()
        if queries:
            self._residents.again(self.shard, self._envelope.address, queries)

    def _free(self) -> None:
        """Take the cycles of references apart, so that the memory is free now and not when the
        collector comes: an execution has lived long enough to be in its oldest generation."""
        self._pass_on_queries()
        self._events.clear()
        if self._body is not None:
            self._body.free()
        self._body = self._incoming = None
        self._ledger.free()
        self._outgoing.free()

    def _end_trial(self) -> None:
        """Others may have theirs, once it has got on or is gone."""
        if self._accused and (self._over or not self._ledger.on_trial):
            self._accused = False
            self._services.delivery.trials.done(self)

    def _stop_work(self) -> None:
        self._outgoing.stop()
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        body = self._body
        if body is not None:
            for step in body.steps.values():
                if step.task is not None:
                    step.task.cancel()
            body.close()
        self._end_trial()
        self._check_quiet()

    def _check_quiet(self) -> None:
        quiet, body = self._quiet, self._body
        if quiet is None or quiet.done():
            return
        running = not self._blocked and (
            body is not None
            and (bool(self._events) or self._committing is not None or bool(self.running))
        )
        if self._over or not (self._ledger.busy or running):
            quiet.set_result(None)


_STATUS: dict[type[Exit], Status] = {
    Success: Status.SUCCEEDED,
    Failure: Status.FAILED,
    Defect: Status.FAILED,
    Interrupted: Status.INTERRUPTED,
    Terminated: Status.TERMINATED,
}
