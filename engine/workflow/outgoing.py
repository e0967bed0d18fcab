"""The commands of a body on their way out: attempts of steps, and calls of entities.

From ``workflow.resident``, turn by turn; a step's end comes back to it as an event. Nothing starts
here before everything the body had seen is durable.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from engine.cluster.call import TRACE
from engine.cluster.delivery import Delivery
from engine.cluster.shard import OwnedShard
from engine.core.clock import Alarm, Clock
from engine.core.codec import same_json
from engine.core.envelope import ReplyTo
from engine.core.errors import (
    ConfigurationError,
    EngineError,
    ErrorDetails,
    InvalidPayload,
    NotFound,
    OwnershipLost,
    PayloadConflict,
    StorageUnavailable,
)
from engine.core.ids import Snowflake, SnowflakeGenerator
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.payload import PayloadLimit
from engine.core.reply import Exit, Failure, Success, encode_error
from engine.storage.protocol import (
    Saved,
    SaveOutcome,
    SaveRequest,
    Storage,
    StoredExecution,
)
from engine.workflow.activity import StepDefinition
from engine.workflow.body import Body
from engine.workflow.child import ChildRun
from engine.workflow.definition import Workflow
from engine.workflow.ledger import Ledger
from engine.workflow.pulse import Pulse
from engine.workflow.repair import ABANDONED, Origin
from engine.workflow.step import Call, Step
from engine.workflow.step_context import StepContext
from engine.workflow.step_threads import StepThreads
from engine.workflow.steps import (
    Ended,
    Errored,
    Postponed,
    StepDropped,
    Unavailable,
    run_activity,
    run_transaction,
)
from engine.workflow.tags import INTERRUPT, encode_text
from engine.workflow.token import StepToken

log: logging.Logger = logging.getLogger(__name__)

PAUSE = timedelta(milliseconds=200)
Event = Callable[[], None]
Result = Ended | Errored | Postponed | Unavailable
"""How an attempt went."""


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
    threads: StepThreads
    limit: PayloadLimit


class Outgoing:
    """Starts what the body of one execution asks for.

    ``origin`` is what idempotency keys are made of, ``trace`` the trace context it was started
    with, which it sends on. ``ended``, ``lapsed`` and ``answered`` take an attempt's end, one whose
    completion is overdue, and a shared reply; ``position`` gives the journal row of a transaction
    that is about to commit; ``look`` is called when something was left to write outside a turn.
    ``waiting`` are the commands that wait for a flush.
    """

    __slots__ = (
        "_alarms",
        "_answered",
        "_ended",
        "_lapsed",
        "_lapses",
        "_ledger",
        "_look",
        "_name",
        "_origin",
        "_over",
        "_position",
        "_prototype",
        "_services",
        "_shard",
        "_state",
        "_trace",
        "calls",
        "paused",
        "waiting",
    )

    def __init__(
        self,
        *,
        state: StoredExecution,
        origin: Origin,
        trace: str | None,
        prototype: Workflow[Any, Any],
        shard: OwnedShard,
        ledger: Ledger,
        services: Services,
        ended: Callable[[Step, Result], None],
        lapsed: Callable[[Step, int], None],
        answered: Callable[[Step, Exit, Snowflake | None], None],
        position: Callable[[Step, bytes], "asyncio.Future[JournalRow]"],
        look: Callable[[], None],
    ) -> None:
        self.calls: dict[Snowflake, Step] = {}
        self.waiting: list[Step] = []
        self.paused: bool = False
        self._state = state
        self._origin = origin.seed.replace(":", "/")
        self._trace = trace
        self._name = f"{state.workflow}/{state.execution_id}"
        self._prototype = prototype
        self._shard = shard
        self._ledger = ledger
        self._services = services
        self._ended = ended
        self._lapsed = lapsed
        self._answered = answered
        self._position = position
        self._look = look
        self._alarms: set[Alarm] = set()
        self._lapses: dict[Step, Alarm] = {}
        self._over = False

    def launch_ready(self, body: Body) -> None:
        """Start what the body asked for, as far as everything before it is durable.

        INVARIANT durable-before-command: ``mark`` counts the rows there were when the command was
        found; it leaves when as many have been flushed.
        """
        for step in body.commands:
            if step.transaction:
                # Its row is written off the lane, and who finds no start looks for no journal.
                self._ledger.need_start()
            self.put(step)
        body.commands.clear()
        while self.waiting and not self.paused and (ready := self._durable()):
            for step in ready:
                if not step.future.done():
                    self._launch(step)

    def _durable(self) -> list[Step]:
        """Take the oldest that wait and need not, since all before them is durable."""
        waiting, count = self.waiting, 0
        while count < len(waiting) and self._ledger.durable(waiting[count].mark):
            count += 1
        ready = waiting[:count]
        del waiting[:count]
        return ready

    def put(self, step: Step) -> None:
        """Launch a step once all that is in the ledger now is durable."""
        step.mark = self._ledger.mark
        self.waiting.append(step)

    def again_soon(self, step: Step) -> None:
        """The same attempt once more: the database could not be asked."""
        step.retry_at = self._services.clock.now() + PAUSE
        self._later(step.retry_at, partial(self._start, step))

    def stop(self) -> None:
        """Start nothing any more."""
        self._over = True
        self._silence()

    def free(self) -> None:
        """Tell nobody any more: attempts may still be on their way to their end."""
        self._ended = self._lapsed = self._answered = self._look = _nobody
        self._position = _drop
        self.calls.clear()
        self.waiting.clear()

    def resume(self, body: Body) -> None:
        """Go on after a pause: what fell due meanwhile was not started."""
        self.paused = False
        self._silence()
        for step in body.steps.values():
            if step.task is None and (step.postponed or step.retry_at is not None):
                self.put(step)

    def await_completion(self, step: Step) -> None:
        """Somebody outside ends it, before it is due."""
        if step.due_at is not None:
            lapse = partial(self._lapsed, step, step.attempt)
            self._lapses[step] = self._later(step.due_at, lapse)

    def await_no_more(self, step: Step) -> None:
        """Its postponed attempt has ended."""
        alarm = self._lapses.pop(step, None)
        if alarm is not None:
            alarm.cancel()
            self._alarms.discard(alarm)

    def _silence(self) -> None:
        for alarm in self._alarms:
            alarm.cancel()
        self._alarms.clear()
        self._lapses.clear()

    def saved(self, request: SaveRequest, saved: Saved) -> None:
        """What has become of a request: one that shares its key shares the reply of whoever was
        first, and a message has its answer in it."""
        request_id = request.envelope.request_id
        step = self.calls.get(request_id)
        if step is None or step.call is None:
            return
        if step.call.told:
            del self.calls[request_id]
            self._answered(step, _told(saved, request_id), None)
        elif saved.outcome is SaveOutcome.EXISTS and saved.request_id != request_id:
            del self.calls[request_id]
            if step.future.done():
                return
            if (error := _conflict(step, saved, request)) is not None:
                self._answered(step, Failure(ErrorDetails.of(error)), None)
                return
            step.task = self._services.spawn(self._share(step, saved.request_id))

    def release(self, step: Step, child: ChildRun, reason: str) -> None:
        """Nobody waits for a child any more: interrupt it, or take its start back. One that is only
        sent again, since it had left before a crash, is there already."""
        if step.request_id is None:
            return
        if not self._ledger.withdraw(step.request_id) or step.resent:
            self._leave_with(child.group, partial(self._interrupt, child, reason))

    def start_abandoned(self, step: Step, child: ChildRun) -> None:
        """Its parent ends in the turn in which it asked for a child that is to outlive it. One that
        cannot be started is seen in the history only: nobody is left to be told."""
        try:
            self._check(step)
        except InvalidPayload as error:
            row = self._called(step, None)
            details = encode_error(ErrorDetails.of(error))
            self._ledger.amend(row, replace(row, outcome=Outcome.FAILED, payload=details))
            return
        self._leave_with(child.group, partial(self._run_of, child, step, self._called(step, None)))

    def _leave_with(self, group: str, make: Callable[[], SaveRequest]) -> None:
        # INVARIANT one-commit: that a child is to end leaves with what makes it unwanted. When
        # that is the exit, nobody would come back to say it.
        try:
            self._ledger.request(make())
        except (StorageUnavailable, ConfigurationError):
            self._ledger.hold_back()
            self._services.spawn(self._prepare_and_let_go(group, make))

    def _run_of(self, child: ChildRun, step: Step, row: JournalRow) -> SaveRequest:
        request = self._request(child, step, self._services.ids.next())
        self._ledger.amend(row, replace(row, source=request.envelope.request_id))
        return request

    def _interrupt(self, child: ChildRun, reason: str) -> SaveRequest:
        services = self._services
        return child.place.message(
            services.ids.next(),
            shards_in=services.storage.shards_in,
            tag=INTERRUPT,
            payload=encode_text(reason),
        )

    async def _prepare_and_let_go(self, group: str, make: Callable[[], SaveRequest]) -> None:
        while self._shard.alive:
            await self._prepare(group)
            try:
                request = make()
            except (StorageUnavailable, ConfigurationError):
                continue
            self._ledger.let_go(request)
            self._look()
            return

    async def _share(self, step: Step, request_id: Snowflake) -> None:
        services = self._services
        while isinstance(step.call, ChildRun):
            try:
                step.followed = await services.storage.follow(request_id, self._ledger.id)
                break
            except (StorageUnavailable, TimeoutError, OSError):
                await asyncio.sleep(PAUSE.total_seconds())
        if step.followed:
            self._look()
        try:
            exit = await services.await_exit(request_id)
        except NotFound:  # it was pruned since: this request may be the first of its key now
            step.task, step.followed = None, False
            self.put(step)
            self._look()
            return
        step.task, step.followed = None, False
        self._answered(step, exit, request_id)

    def _launch(self, step: Step) -> None:
        if step.call is not None:
            self._send(step)
        elif step.postponed:
            self.await_completion(step)
        elif step.retry_at is not None and step.retry_at > self._services.clock.now():
            self._later(step.retry_at, partial(self._start, step))
        else:
            self._start(step)

    # --- attempts ---------------------------------------------------------------------------------

    def _start(self, step: Step) -> None:
        if step.future.done() or self._over:
            return
        if self.paused:  # the attempt has not begun: it does when this goes on, or is replayed
            if step.retry_at is None:
                self.put(step)
            return
        step.attempt_at = self._services.clock.now()
        step.started_at = step.started_at or step.attempt_at
        step.retry_at = None
        task = self._services.spawn(self._attempt(step))
        if not task.done():  # as it may be where the host's loop begins tasks at once
            step.task = task

    async def _attempt(self, step: Step) -> None:
        TRACE.set(self._trace)  # of this attempt's task alone
        work = self._run_transaction if step.transaction else self._run_activity
        try:
            result = await work(step)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            result = Errored(error, ErrorDetails.of(error), Outcome.FAILED)
        except StepDropped:
            return
        except OwnershipLost as error:
            if self._shard.alive:  # another owner took the shard, so this lane's lock is gone
                log.warning(
                    "the lane of a refused transaction begins anew", extra={"error": str(error)}
                )
                self._shard.lane.terminate()
            return
        finally:
            step.task = None
        self._ended(step, result)

    async def _run_transaction(self, step: Step) -> Result:
        return await run_transaction(
            self._prototype,
            step,
            _definition_of(step),
            self._context(step),
            storage=self._services.storage,
            fence=self._shard.fence,
            position=self._position,
            limit=self._services.limit,
        )

    async def _run_activity(self, step: Step) -> Result:
        definition = _definition_of(step)
        if definition.heartbeat_timeout is not None and step.details is None:
            try:
                step.details = await self._recall(step)
            except (StorageUnavailable, TimeoutError, OSError) as error:
                return Unavailable(error)
        task = asyncio.current_task()  # a host's loop may begin tasks before it hands them out
        assert task is not None
        pulse = Pulse(
            clock=self._services.clock,
            timeout=definition.heartbeat_timeout,
            details=step.details or b"",
            report=partial(self._report, step),
            task=task,
        )
        context = self._context(step, pulse)
        threads = self._services.threads
        result = await run_activity(
            self._prototype,
            step,
            definition,
            context,
            pulse,
            threads=threads,
            limit=self._services.limit,
        )
        if not isinstance(result, Ended):
            pulse.send_rest()
        return result

    def _context(self, step: Step, pulse: Pulse | None = None) -> StepContext:
        state = self._state
        return StepContext(
            execution_id=state.execution_id,
            idempotency_key=f"{self._name}/{self._origin}/{step.name}/{step.ordinal + 1}",
            attempt=step.attempt,
            pulse=pulse,
            token=None if pulse is None else partial(_token, state, step, step.attempt),
        )

    async def _recall(self, step: Step) -> bytes:
        """What an attempt under an earlier owner reported last."""
        if self._state.started_at is None:
            return b""  # nothing of this execution was durable when it was read
        for each in await self._services.storage.heartbeats([self._ledger.id]):
            if (each.run, each.name, each.ordinal) == (self._ledger.run, *step.key):
                step.reported = True
                return each.details or b""
        return b""

    def _report(self, step: Step, at: datetime, details: bytes) -> None:
        if not (self._over or step.future.done()):
            step.details, step.reported = details, True
            self._ledger.beat(step, at, details)
            self._look()

    # --- calls ------------------------------------------------------------------------------------

    def _send(self, step: Step) -> None:
        """Send a call: its CALL row and the request leave in one flush. What was sent before a
        crash is sent again, as the same request, if its answer may not come through the inbox."""
        call = step.call
        assert call is not None
        if step.request_id is not None and not (call.shared or call.told):
            return
        try:
            self._check(step)
        except InvalidPayload as error:
            self._answered(step, Failure(ErrorDetails.of(error)), None)
            return
        try:
            request_id = step.request_id or self._services.ids.next()
            request = self._request(call, step, request_id)
        except (StorageUnavailable, ConfigurationError):
            step.task = self._services.spawn(self._prepare_and_send(step, call.group))
            return
        if step.request_id is None:
            step.started_at = self._ledger.at
            self._called(step, request_id)
        step.request_id = request_id
        self.calls[request_id] = step
        self._ledger.request(request)

    def _check(self, step: Step) -> None:
        self._services.limit.check(step.payload, "the arguments of", step.name)

    def _request(self, call: Call, step: Step, request_id: Snowflake) -> SaveRequest:
        return call.request(
            request_id,
            shards_in=self._services.storage.shards_in,
            payload=step.payload,
            reply_to=ReplyTo(execution=self._ledger.id, shard=self._shard.id),
            trace=self._trace,
        )

    def _called(self, step: Step, request_id: Snowflake | None) -> JournalRow:
        """Its CALL row."""
        return self._ledger.append(
            JournalKind.CALL,
            step.name,
            step.ordinal,
            digest=step.digest,
            source=request_id,
            at=self._ledger.at,
            payload=ABANDONED if isinstance(step.call, ChildRun) and step.call.abandoned else b"",
        )

    async def _prepare_and_send(self, step: Step, group: str) -> None:
        await self._prepare(group)
        step.task = None
        if not self._over and not step.future.done():
            if self.paused:
                self.put(step)
            else:
                self._send(step)
        self._look()

    async def _prepare(self, group: str) -> None:
        """The machine id's lease has run out, or the group is new here: mend it."""
        try:
            await self._services.renew_lease()
            await self._services.storage.ensure_groups([group])
        except (StorageUnavailable, TimeoutError, OSError) as error:
            log.warning("a call has to wait", extra={"execution": self._name, "error": str(error)})
            await asyncio.sleep(PAUSE.total_seconds())

    def _later(self, when: datetime, then: Event) -> Alarm:
        def ring() -> None:
            self._alarms.discard(alarm)
            then()
            self._look()

        alarm = self._services.clock.call_at(when, ring)
        self._alarms.add(alarm)
        return alarm


def _definition_of(step: Step) -> StepDefinition:
    assert step.definition is not None
    return step.definition


def _token(state: StoredExecution, step: Step, attempt: int) -> StepToken:
    return StepToken(
        group=state.shard.group,
        workflow=state.workflow,
        id=state.execution_id,
        run=state.run,
        name=step.name,
        ordinal=step.ordinal,
        attempt=attempt,
    )


def _conflict(step: Step, saved: Saved, request: SaveRequest) -> EngineError | None:
    """Why a request that was there before is not the one meant, if it is not."""
    try:
        same = saved.payload is None or same_json(saved.payload, request.envelope.payload)
    except InvalidPayload as error:
        return error
    if same:
        return None
    return PayloadConflict(f"the key of {step.name} was used before with other values")


def _told(saved: Saved, request_id: Snowflake) -> Exit:
    """Whether a message came in time, or that there is nobody to tell."""
    if saved.outcome is SaveOutcome.NO_TARGET:
        return Failure(ErrorDetails("NotFound", "there is no such execution"))
    return Success(
        b"true" if saved.request_id == request_id and saved.outcome in _CAME else b"false"
    )


_CAME = frozenset({SaveOutcome.CREATED, SaveOutcome.EXISTS})


def _nobody(*_: object) -> None:
    """Nobody listens any more."""


def _drop(step: Step, payload: bytes) -> "asyncio.Future[JournalRow]":
    raise StepDropped
