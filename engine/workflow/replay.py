"""Match a journal's rows against what the body asks for, one after the other.

From ``workflow.resident``, which reads the journal; a row that fits goes into ``workflow.body``
exactly as the event did the first time. One that does not is ``NonDeterminism``.
"""

import asyncio
from collections.abc import Callable, Generator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import CoroutineType
from typing import Any

from engine.core.errors import InvalidPayload, NonDeterminism
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.reply import decode_error
from engine.core.seal import unreadable
from engine.storage.protocol import LoadedExecution
from engine.workflow.body import Body
from engine.workflow.definition import Workflow, WorkflowDefinition, definition_of
from engine.workflow.handlers import HandlerDefinition
from engine.workflow.patches import Patches
from engine.workflow.repair import ABANDONED, ANY_DIGEST, Origin
from engine.workflow.step import Step
from engine.workflow.tags import DEADLINE, decode_text

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_NEVER = datetime(9999, 12, 31, tzinfo=UTC)
_LAST = (_NEVER - _EPOCH).total_seconds()
_OURS = (str(Path(__file__).parents[1]), str(Path(asyncio.__file__).parent))


def apply(body: Body, row: JournalRow) -> None:
    """Deliver one row. The body's loop is drained before and after, by the caller."""
    body.patches.pass_by(row)
    _apply(body, row)
    if (later := body.origin.later(row)) != row.at:
        body.set_time(later)


def _apply(body: Body, row: JournalRow) -> None:
    match row.kind:
        case JournalKind.STEP:
            _apply_step(body, row)
        case JournalKind.ATTEMPT:
            step = _expect(body, row)
            body.set_time(row.at)
            step.attempt = row.attempt + 1
            step.retry_at = row.due_at
            step.started_at = row.started_at
            step.postponed, step.due_at = False, None
        case JournalKind.POSTPONED:
            step = _expect(body, row)
            body.set_time(row.at)
            step.attempt, step.retry_at = row.attempt, None
            step.started_at = row.started_at
            step.postponed, step.due_at = True, row.due_at
        case JournalKind.CALL:
            step = _expect(body, row)
            step.request_id, step.resent = row.source, True
            step.started_at = row.at
            if row.outcome is not Outcome.OK:  # the body has ended, and the child not begun
                body.end_step(step, row.outcome, decode_error(row.payload))
        case JournalKind.TIMER:
            _apply_timer(body, row)
        case JournalKind.ANSWER:
            if not body.answers or body.answers[0].source != row.source:
                raise _mismatch(body, row)
            del body.answers[0]
        case JournalKind.COMPENSATING:
            if not body.compensates:
                raise _mismatch(body, row)
            body.compensates = False
        case JournalKind.REPAIRED | JournalKind.PATCHED:
            return
        case _:
            body.set_time(row.at)
            _apply_message(body, row)


def _apply_message(body: Body, row: JournalRow) -> None:
    """Something the execution was told."""
    if row.outcome is Outcome.FAILED:
        if row.kind is JournalKind.RESOLVED:
            body.reject(row.name, decode_error(row.payload))
    elif row.kind is JournalKind.RESOLVED:
        body.resolve(row.name, row.payload)
    elif row.kind is JournalKind.INTERRUPT and row.name == DEADLINE:
        body.expire()
    elif row.kind is JournalKind.INTERRUPT:
        body.interrupt(decode_text(row.payload))
    elif row.kind in (JournalKind.SIGNAL, JournalKind.UPDATE):
        handler = _handler(body, row)
        arguments = handler.signature.decode(row.payload)
        if row.kind is JournalKind.SIGNAL:
            body.signal(handler, *arguments)
        elif row.source is not None:
            body.update(row.source, handler, *arguments)


@contextmanager
def replayed(
    definition: WorkflowDefinition, prototype: Workflow[Any, Any], loaded: LoadedExecution
) -> Generator[Body, None, None]:
    """A body that has seen the whole journal and goes no further; it is closed afterwards.

    ``NonDeterminism`` when the code asks for something else. Call from the host's loop, outside of
    any task.
    """
    body = body_of(definition, prototype, loaded, observed=_nobody)
    if (at := begun_at(loaded)) is not None:
        body.set_time(at)
    try:
        for row in loaded.journal:
            while not body.drain():
                continue
            if body.done:
                check_behind(body, row)
            apply(body, row)
        while not body.drain():
            continue
        yield body
    finally:
        body.close()
        body.free()


def body_of(
    definition: WorkflowDefinition,
    prototype: Workflow[Any, Any],
    loaded: LoadedExecution,
    *,
    observed: Callable[[], None],
) -> Body:
    """The body of an execution's present run, before anything of it has run; ``InvalidPayload``."""
    execution, journal = loaded.execution, loaded.journal
    if (told := undecodable(loaded)) is not None:
        raise InvalidPayload(told)
    payload = loaded.envelope.payload
    for row in journal[:_HEAD]:
        if row.kind is JournalKind.CONTINUED:
            payload = row.payload
    return Body(
        prototype=prototype,
        request=definition.request.decode(payload),
        id=execution.request_id,
        execution_id=execution.execution_id,
        run=execution.run,
        origin=Origin.of(loaded),
        patches=Patches(loaded),
        observed=observed,
    )


def undecodable(loaded: LoadedExecution) -> str | None:
    """What to say of an execution with values that this process has no codec or key for."""
    told = unreadable(loaded.envelope.payload)
    for row in loaded.journal:
        told = told or unreadable(row.payload)
    return None if told is None else f"one of its values is {told}"


def begun_at(loaded: LoadedExecution) -> datetime | None:
    """When the present run began; None when that is still to come."""
    if not loaded.journal:
        return loaded.execution.started_at
    origin = Origin.of(loaded)
    for row in loaded.journal[:_HEAD]:
        if row.kind is JournalKind.CONTINUED:
            return row.at if origin.at is None or row.position < origin.until else origin.at
    if origin.at is not None and origin.until == 0:
        return origin.at  # nothing that was done before is kept
    return loaded.execution.started_at


_HEAD = 2
"""So many rows at most come before anything that has happened to a run."""
_BEHIND = frozenset(
    {
        JournalKind.ANSWER,
        JournalKind.PATCHED,
        JournalKind.TERMINATED,
        JournalKind.REPAIRED,
        JournalKind.CONTINUED,
        JournalKind.RESOLVED,
        JournalKind.PAUSED,
        JournalKind.RESUMED,
        JournalKind.RETRIED,
    }
)
"""What may come after the end of a body: what it leaves behind, and what a run begins with, which
a body that ends at once does not live to see."""


def _nobody() -> None:
    """Nobody listens."""


def result_of(step: Step, row: JournalRow) -> object:
    """What the body got from a step: its decoded result, or the details of its error."""
    if row.outcome is not Outcome.OK:
        return decode_error(row.payload)
    if step.call is not None:
        return step.call.decode(row.payload)
    assert step.definition is not None
    return step.definition.signature.result.decode(row.payload)


def describe(row: JournalRow) -> str:
    """A journal row in words, for errors and people."""
    match row.kind:
        case JournalKind.STEP | JournalKind.ATTEMPT:
            return f"step {row.name}#{row.ordinal + 1}"
        case JournalKind.POSTPONED:
            return f"the completion of step {row.name}#{row.ordinal + 1}"
        case JournalKind.CALL:
            return f"call {row.name}#{row.ordinal + 1}"
        case JournalKind.TIMER:
            until = "" if row.due_at is None else f" until {row.due_at.isoformat()}"
            return f"timer #{row.ordinal + 1}{until}"
        case JournalKind.RESOLVED:
            return f"deferred {row.name}"
        case JournalKind.INTERRUPT:
            return "the end of its time" if row.name == DEADLINE else "an interrupt"
        case JournalKind.SIGNAL | JournalKind.UPDATE:
            return f"{row.kind.name.lower()} {row.name}"
        case JournalKind.ANSWER:
            return f"the answer of update {row.name}"
        case JournalKind.PATCHED:
            return f"what patched({row.name!r}) answered"
        case kind:
            return _OF_ITSELF[kind]


_OF_ITSELF = {
    JournalKind.CONTINUED: "the beginning of this run",
    JournalKind.TERMINATED: "its termination",
    JournalKind.COMPENSATING: "its compensations",
    JournalKind.REPAIRED: "its repair",
    JournalKind.PAUSED: "a pause",
    JournalKind.RESUMED: "the end of a pause",
    JournalKind.RETRIED: "the wish that it goes on",
}


def check_behind(body: Body, row: JournalRow) -> None:
    """``NonDeterminism`` if the body has ended, but its journal goes on with what it was to do."""
    abandoned = row.payload == ABANDONED or row.outcome is Outcome.FAILED
    left = row.kind is JournalKind.CALL and abandoned and (row.name, row.ordinal) in body.steps
    if left or row.kind in _BEHIND:
        return
    raise NonDeterminism(
        expected=f"{describe(row)} at position {row.position}",
        found="ends before it",
        where=_line_of(body),
    )


def unended(body: Body, what: str) -> NonDeterminism:
    """The execution or run has ended, but its body goes on."""
    found, where = _asked(body)
    return NonDeterminism(expected=f"the end of {what}", found=found, where=where)


def deadline_of(when: float) -> datetime:
    """A timer's deadline as it is stored, to the microsecond; ``asyncio.sleep(math.inf)`` has one
    that does not come."""
    return _EPOCH + timedelta(seconds=when) if when < _LAST else _NEVER


def waits(body: Body) -> str | None:
    """What the body waits for, in words; None when it is nothing."""
    found = [f"deferred {name}" for name in body.waiting_for]
    found.extend(f"a condition ({line})" for line in body.conditions)
    timer = body.loop.next_timer()
    if timer is not None:
        found.append(f"the timer due {deadline_of(timer.deadline).isoformat()}")
    for step in body.steps.values():
        if step.call is not None:
            found.append(step.call.waits)
        elif step.postponed:
            due = "" if step.due_at is None else f" due {step.due_at.isoformat()}"
            found.append(f"the completion of {step}{due}")
        elif step.retry_at is not None:
            found.append(f"attempt {step.attempt} of {step} due {step.retry_at.isoformat()}")
        else:
            found.append(str(step))
    return "waits for " + ", ".join(found) if found else None


def _handler(body: Body, row: JournalRow) -> HandlerDefinition:
    found = definition_of(type(body.instance)).handlers.get(row.name)
    if found is None or found.kind.name != row.kind.name:
        raise NonDeterminism(
            expected=f"{describe(row)} at position {row.position}",
            found=f"has no {row.kind.name.lower()} of that name",
            where=_line_of(body),
        )
    return found


def _apply_step(body: Body, row: JournalRow) -> None:
    key = (row.name, row.ordinal)
    if row.outcome is Outcome.CANCELLED:
        if body.cancelled.pop(key, None) is None:
            raise _mismatch(body, row, found_suffix=" and does not cancel it")
        body.steps.pop(key, None)
        return
    step = _expect(body, row)
    step.attempt = row.attempt
    body.set_time(row.at)
    body.end_step(step, row.outcome, result_of(step, row))


def _apply_timer(body: Body, row: JournalRow) -> None:
    timer = body.loop.timers.get(row.ordinal)
    if timer is None:
        raise _mismatch(body, row)
    deadline = deadline_of(timer.deadline)
    if deadline != row.due_at:
        raise NonDeterminism(
            expected=f"{describe(row)} at position {row.position}",
            found=f"waits until {deadline.isoformat()}",
            where=_line_of(body),
        )
    body.set_time(row.at)
    body.loop.fire(row.ordinal)


def _expect(body: Body, row: JournalRow) -> Step:
    step = body.steps.get((row.name, row.ordinal))
    if step is None or step.future.done():
        raise _mismatch(body, row)
    if row.digest not in (ANY_DIGEST, step.digest):
        raise NonDeterminism(
            expected=f"{describe(row)} at position {row.position} with other arguments",
            found=f"calls it with {step.payload[:200].decode(errors='replace')}",
            where=step.line,
        )
    return step


def _mismatch(body: Body, row: JournalRow, found_suffix: str = "") -> NonDeterminism:
    found, where = _asked(body, found_suffix)
    return NonDeterminism(
        expected=f"{describe(row)} at position {row.position}", found=found, where=where
    )


def _asked(body: Body, suffix: str = "") -> tuple[str, str]:
    """What the code asks for, and where."""
    asked = [step for step in body.steps.values() if not step.future.done()]
    if asked:
        return "asks for " + ", ".join(str(step) for step in asked[:5]) + suffix, asked[0].line
    if body.loop.timers:
        return "waits for a timer", _line_of(body)
    if body.waiting_for:
        return "waits for " + ", ".join(body.waiting_for[:5]), _line_of(body)
    return "asks for nothing" + suffix, _line_of(body)


def _line_of(body: Body) -> str:
    """The line of user code where the body's main task stands now, or where its code begins."""
    code = type(body.instance).execute.__code__
    place = f"{code.co_filename}:{code.co_firstlineno} in {code.co_qualname}"
    awaited: object = body.task.get_coro()
    while isinstance(awaited, CoroutineType):
        frame = awaited.cr_frame
        if frame is None:
            break
        if not frame.f_code.co_filename.startswith(_OURS):
            place = f"{frame.f_code.co_filename}:{frame.f_lineno} in {frame.f_code.co_qualname}"
        awaited = awaited.cr_await
    return place
