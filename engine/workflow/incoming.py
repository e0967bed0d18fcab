"""What happens to an execution: each event becomes a journal row and goes to the body.

From ``workflow.resident``, which calls these between two drains of the body's loop. What changes
nothing (a late result, a message seen before) is settled and forgotten.
"""

import logging
import random

from engine.core.clock import Clock
from engine.core.envelope import EnvelopeRequest
from engine.core.errors import (
    ErrorDetails,
    GiveUp,
    InvalidPayload,
    NotRegistered,
    StepFailed,
    UpdateRejected,
)
from engine.core.ids import Snowflake
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.reply import (
    Defect,
    Exit,
    Failure,
    Interrupted,
    Success,
    Terminated,
    decode_error,
    decode_exit,
    encode_error,
)
from engine.storage.protocol import InboxRow
from engine.workflow.body import Body
from engine.workflow.child import ChildRun
from engine.workflow.definition import definition_of
from engine.workflow.handlers import HandlerDefinition, HandlerKind
from engine.workflow.ledger import Ledger
from engine.workflow.outgoing import Outgoing, Result
from engine.workflow.replay import deadline_of
from engine.workflow.step import Step
from engine.workflow.steps import (
    Ended,
    Errored,
    Postponed,
    Unavailable,
    out_of_time,
)
from engine.workflow.tags import (
    DEADLINE,
    INTERRUPT,
    decode_text,
    deferred_of,
    encode_text,
    signal_of,
    update_of,
)
from engine.workflow.token import Completion, completion_of

log: logging.Logger = logging.getLogger(__name__)
_ENDS = {Interrupted: Outcome.INTERRUPTED, Terminated: Outcome.TERMINATED}
_draw = random.Random()


class Incoming:
    """Delivers events to one body. ``seen`` are the messages its journal holds already."""

    __slots__ = (
        "_body",
        "_clock",
        "_ledger",
        "_name",
        "_outgoing",
        "_seen",
    )

    def __init__(
        self,
        *,
        name: str,
        body: Body,
        ledger: Ledger,
        outgoing: Outgoing,
        clock: Clock,
        seen: set[Snowflake],
    ) -> None:
        self._name = name
        self._body = body
        self._ledger = ledger
        self._outgoing = outgoing
        self._clock = clock
        self._seen = seen

    def ended(self, step: Step, result: Result, source: Snowflake | None = None) -> None:
        """An attempt of a step has ended; by a message from outside, if there is a ``source``."""
        if step.future.done():
            return
        match result:
            case Ended(payload, value):
                if step.transaction:  # which has written its row itself
                    self._ledger.move(self._ledger.at)
                else:
                    self._ledger.append_step(step, Outcome.OK, payload, source)
                self._over(step)
                self._body.end_step(step, Outcome.OK, value)
            case Errored(error, details, outcome, final):
                again = not final and step.retry.retries(error, step.attempt)
                self._log_failure(step, details, again=again)
                if again:
                    self._retry(step, error, details, outcome, source)
                else:
                    payload = encode_error(details)
                    self._ledger.append_step(step, outcome, payload, source)
                    self._over(step)
                    # As a replay will see it: what its author added has become JSON.
                    self._body.end_step(step, outcome, decode_error(payload))
            case Postponed():
                self._postpone(step)
            case Unavailable(error):
                log.warning(
                    "a step could not reach the database; the same attempt follows",
                    extra={"execution": self._name, "step": str(step), "error": str(error)},
                )
                self._outgoing.again_soon(step)

    def _log_failure(self, step: Step, details: ErrorDetails, *, again: bool) -> None:
        # The message is left out: it may quote what a user said.
        what = {"execution": self._name, "step": step.name, "attempt": step.attempt}
        log.info(
            "a step failed, another attempt follows" if again else "a step failed",
            extra=what | {"error": details.type},
        )

    def lapsed(self, step: Step, attempt: int) -> None:
        """Nobody has completed a postponed attempt in time."""
        if step.postponed and step.attempt == attempt:
            timeout = None if step.definition is None else step.definition.timeout
            details = ErrorDetails("TimeoutError", out_of_time("completion", timeout))
            self.ended(step, Errored(TimeoutError(details.message), details, Outcome.TIMED_OUT))

    def fired(self, ordinal: int) -> None:
        """A timer's time has come."""
        timer = self._body.loop.timers.get(ordinal)
        if timer is None:
            return
        deadline = deadline_of(timer.deadline)
        self._ledger.append(
            JournalKind.TIMER,
            "timer",
            ordinal,
            due_at=deadline,
            at=max(self._ledger.tick(), deadline),
        )
        self._body.loop.fire(ordinal)

    def replied(self, row: InboxRow) -> None:
        """The exit of a call has come; without one, whoever it was has been retried since, and
        another will."""
        request_id, reply = row.envelope.request_id, row.reply
        if reply is not None and (step := self._outgoing.calls.pop(request_id, None)) is not None:
            self.answered(step, decode_exit(reply.kind, reply.payload), request_id)
        self._ledger.settle(row.seq)

    def answered(self, step: Step, exit: Exit, source: Snowflake | None) -> None:
        """A call has its answer."""
        if step.future.done():
            return
        assert step.call is not None
        match exit:
            case Success(value):
                try:
                    result = step.call.decode(value)
                except InvalidPayload as error:
                    self._fail_call(step, ErrorDetails.of(error), source)
                    return
                self._ledger.append_step(step, Outcome.OK, value, source)
                self._body.end_step(step, Outcome.OK, result)
            case Failure(error) | Defect(error):
                self._fail_call(step, error, source)
            case Interrupted(reason) | Terminated(reason):
                details = ErrorDetails(type(exit).__name__, reason)
                self._fail_call(step, details, source, _ENDS[type(exit)])

    def told(self, row: InboxRow) -> None:
        """A message to the execution has come: a resolution, a signal, an update, an interrupt."""
        envelope = row.envelope
        if self.is_new(envelope.request_id):
            if (name := signal_of(envelope.tag)) is not None:
                self._signal(name, envelope)
            elif (name := update_of(envelope.tag)) is not None:
                self._update(name, envelope)
            elif (completion := completion_of(envelope.tag)) is not None:
                if not self._completed(completion, row):
                    return
            else:
                try:
                    self._tell(envelope)
                except InvalidPayload as error:
                    log.warning(
                        "a message to an execution could not be read and is left out",
                        extra={"execution": self._name, "tag": envelope.tag, "error": str(error)},
                    )
        self._ledger.settle(row.seq)

    def is_new(self, request_id: Snowflake) -> bool:
        """Whether a message was not seen before; from now on it was."""
        known = request_id in self._seen
        self._seen.add(request_id)
        return not known

    def _signal(self, name: str, envelope: EnvelopeRequest) -> None:
        """Journal a signal and let its handler run; one that cannot be read is seen in the
        history only."""
        try:
            handler, args, kwargs = self._read(name, HandlerKind.SIGNAL, envelope)
        except (InvalidPayload, NotRegistered) as error:
            self._ledger.append(
                JournalKind.SIGNAL,
                name,
                0,
                outcome=Outcome.FAILED,
                source=envelope.request_id,
                payload=encode_error(ErrorDetails.of(error)),
            )
            return
        self._ledger.append(
            JournalKind.SIGNAL, name, 0, source=envelope.request_id, payload=envelope.payload
        )
        self._body.signal(handler, args, kwargs)

    def _update(self, name: str, envelope: EnvelopeRequest) -> None:
        """Journal an update and let its handler run; one that is refused is answered and leaves
        no trace."""
        source = envelope.request_id
        try:
            handler, args, kwargs = self._read(name, HandlerKind.UPDATE, envelope)
        except (InvalidPayload, NotRegistered) as error:
            self._ledger.answer(source, Failure(ErrorDetails.of(error)))
            return
        refusal = self._body.refusal(handler, args, kwargs)
        if refusal is not None:
            refused = ErrorDetails.of(refusal)
            details = ErrorDetails(UpdateRejected.__name__, refused.message, cause=refused)
            self._ledger.answer(source, Failure(details))
            return
        self._ledger.append(JournalKind.UPDATE, name, 0, source=source, payload=envelope.payload)
        self._body.update(source, handler, args, kwargs)

    def _read(
        self, name: str, kind: HandlerKind, envelope: EnvelopeRequest
    ) -> tuple[HandlerDefinition, list[object], dict[str, object]]:
        found = definition_of(type(self._body.instance)).handlers.get(name)
        if found is None or found.kind is not kind:
            raise NotRegistered(f"{self._name} has no {kind.value} named {name!r} in this version")
        return found, *found.signature.decode(envelope.payload)

    def interrupted(self) -> None:
        """The execution's run request is to end early (``Sharding.interrupt``)."""
        payload = encode_text("")
        self._ledger.append(JournalKind.INTERRUPT, INTERRUPT, 0, payload=payload)
        self._body.interrupt("")

    def cancelled(self) -> None:
        """Write down the steps the body has cancelled, and stop their attempts."""
        body = self._body
        while body.cancelled:
            _, step = body.cancelled.popitem()
            body.steps.pop(step.key, None)
            if step.task is not None:
                step.task.cancel()
            self._over(step)
            self._ledger.append(
                JournalKind.STEP,
                step.name,
                step.ordinal,
                outcome=Outcome.CANCELLED,
                digest=step.digest,
                started_at=step.started_at,
                at=self._ledger.at,
            )
            if isinstance(step.call, ChildRun):
                self._outgoing.release(step, step.call, self.farewell())

    def farewell(self) -> str:
        """Why children are interrupted, when they are."""
        reason = self._body.interrupted
        if reason is None:
            return f"{self._name}, which had started it, waits for it no more"
        return f"{self._name}, which had started it, was interrupted" + (reason and f": {reason}")

    def answer(self) -> None:
        """Write down what ``patched()`` and updates have been answered, and that compensations
        begin."""
        patches = self._body.patches
        patches.replaying = False
        for change in patches.asked:
            self._ledger.append(
                JournalKind.PATCHED, change, 0, at=self._ledger.at, payload=patches.stored(change)
            )
        patches.asked.clear()
        if self._body.compensates:
            self._body.compensates = False
            self._ledger.append(JournalKind.COMPENSATING, "compensations", 0, at=self._ledger.at)
        for answer in self._body.answers:
            self._ledger.append(
                JournalKind.ANSWER, answer.name, 0, source=answer.source, at=self._ledger.at
            )
            self._ledger.answer(answer.source, answer.exit)
        self._body.answers.clear()

    def expired(self) -> None:
        """The execution's time is over."""
        self._ledger.append(JournalKind.INTERRUPT, DEADLINE, 0)
        self._body.expire()

    def replayed(self, row: JournalRow) -> None:
        """A row of the journal has been applied to the body."""
        self._ledger.at = max(self._ledger.at, self._body.origin.later(row))
        self._ledger.keep(row)
        if row.kind is JournalKind.CALL and row.source is not None:
            self._outgoing.calls[row.source] = self._body.steps[row.name, row.ordinal]

    def _postpone(self, step: Step) -> None:
        """Leave an attempt's end to the outside; it may have been told already."""
        timeout = None if step.definition is None else step.definition.timeout
        if timeout is not None and step.attempt_at is not None:
            step.due_at = step.attempt_at + timeout
        step.postponed = True
        self._ledger.append(
            JournalKind.POSTPONED,
            step.name,
            step.ordinal,
            attempt=step.attempt,
            digest=step.digest,
            started_at=step.started_at,
            due_at=step.due_at,
        )
        completion = step.completion
        if completion is None:
            self._outgoing.await_completion(step)
        else:
            failed = completion_of(completion.envelope.tag)
            self._complete(step, completion.envelope, failed=failed is None or failed.failed)

    def _completed(self, completion: Completion, row: InboxRow) -> bool:
        """End a postponed attempt from outside; False when its time has not come: the attempt is
        still to say that it leaves its end to others, and the row stays until then."""
        step = self._body.steps.get((completion.name, completion.ordinal))
        meant = (self._ledger.run, step and step.attempt) == (completion.run, completion.attempt)
        if not meant or step is None or step.definition is None or step.future.done():
            log.info(
                "a completion came too late and is left out",
                extra={"execution": self._name, "tag": row.envelope.tag},
            )
            return True
        if step.postponed:
            self._complete(step, row.envelope, failed=completion.failed)
            return True
        step.completion = row
        return False

    def _complete(self, step: Step, envelope: EnvelopeRequest, *, failed: bool) -> None:
        definition, payload = step.definition, envelope.payload
        assert definition is not None
        try:
            if failed:
                result: Result = self._errored(decode_error(payload))
            else:
                result = Ended(payload, definition.signature.result.decode(payload))
        except InvalidPayload as error:
            result = Errored(error, ErrorDetails.of(error), Outcome.FAILED)
        self.ended(step, result, envelope.request_id)

    def _errored(self, details: ErrorDetails) -> Errored:
        """The failure that somebody told of, as the retry policy shall see it."""
        typed = definition_of(type(self._body.instance)).typed(details)
        own = GiveUp(details.message) if details.type == GiveUp.__name__ else None
        return Errored(typed or own or StepFailed(str(details), details), details, Outcome.FAILED)

    def _over(self, step: Step) -> None:
        """A step has ended, or its attempt has: nothing more is expected of that."""
        self._settle_completion(step)
        self._ledger.still(step)

    def _settle_completion(self, step: Step) -> None:
        if step.postponed:
            step.postponed, step.due_at = False, None
            self._outgoing.await_no_more(step)
        if step.completion is not None:
            self._ledger.settle(step.completion.seq)
            step.completion = None

    def _retry(
        self,
        step: Step,
        error: BaseException,
        details: ErrorDetails,
        outcome: Outcome,
        source: Snowflake | None,
    ) -> None:
        due = self._clock.now() + step.retry.delay(step.attempt, _draw, error)
        self._ledger.append(
            JournalKind.ATTEMPT,
            step.name,
            step.ordinal,
            attempt=step.attempt,
            outcome=outcome,
            digest=step.digest,
            started_at=step.started_at,
            due_at=due,
            source=source,
            payload=encode_error(details),
        )
        self._settle_completion(step)
        step.attempt += 1
        step.retry_at = due
        self._outgoing.put(step)

    def _fail_call(
        self,
        step: Step,
        error: ErrorDetails,
        source: Snowflake | None,
        outcome: Outcome = Outcome.FAILED,
    ) -> None:
        self._ledger.append_step(step, outcome, encode_error(error), source)
        self._body.end_step(step, outcome, error)

    def _tell(self, envelope: EnvelopeRequest) -> None:
        ledger, body = self._ledger, self._body
        source, payload = envelope.request_id, envelope.payload
        deferred = deferred_of(envelope.tag)
        if deferred is not None and deferred[1]:
            ledger.append(JournalKind.RESOLVED, deferred[0], 0, source=source, payload=payload)
            body.resolve(deferred[0], payload)
        elif deferred is not None:
            error = ErrorDetails("Rejected", decode_text(payload))
            ledger.append(
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
            ledger.append(JournalKind.INTERRUPT, INTERRUPT, 0, source=source, payload=payload)
            body.interrupt(reason)
        else:
            raise InvalidPayload(f"this version knows no message {envelope.tag!r}")
