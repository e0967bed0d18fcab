"""``ActivityGroup``: what code inside a step can ask and say, for workflows and their mixins."""

from typing import NoReturn

from engine.core.errors import ConfigurationError
from engine.workflow.pulse import Pulse
from engine.workflow.step_context import StepContext, current_step


class CompleteLater(BaseException):
    """The attempt has ended without a result; somebody outside will give it."""


class ActivityGroup:
    """Activities that several workflows have in common, as a mixin.

    Its methods see what they would see in the workflow itself. Two groups with a method of the same
    name are refused, unless the workflow defines it.

    >>> from engine import Workflow, activity
    >>> class Payments(ActivityGroup):
    ...     @activity
    ...     async def charge(self, cents: int) -> str:
    ...         return f"{cents} under {self.idempotency_key}"
    >>> class Fulfil(Payments, Workflow[int, str]):
    ...     async def execute(self, request: int) -> str:
    ...         return await self.charge(request)
    """

    @property
    def execution_id(self) -> str:
        """Inside a step: the id of its execution."""
        return _in_step("execution_id").execution_id

    @property
    def idempotency_key(self) -> str:
        """Inside a step: a text that is the same on every attempt of it, and of no other."""
        return _in_step("idempotency_key").idempotency_key

    @property
    def attempt(self) -> int:
        """Inside a step: 1 on the first attempt, 2 on the next, …"""
        return _in_step("attempt").attempt

    @property
    def cancelled(self) -> bool:
        """Inside a step: whether nobody waits for this attempt any more, since it was cancelled or
        its time is over. A thread that sees it should end: its result is dropped."""
        step = _in_step("cancelled")
        return step.pulse is not None and step.pulse.over

    def heartbeat(self, details: object = None) -> None:
        """Inside an activity, also in threads: say that it is alive, and how far it has come.

        With ``@activity(heartbeat_timeout=...)`` an attempt that says nothing for so long has timed
        out. The next attempt, wherever it runs, finds the last ``details`` (anything with a JSON
        form) as ``heartbeat_details``; they are stored once a second at most, and when the attempt
        fails. In a thread this raises ``asyncio.CancelledError`` when the step was cancelled or its
        time is over. Cheap enough for every turn of a loop.
        """
        _pulse("heartbeat()").beat(details)

    @property
    def heartbeat_details(self) -> object:
        """Inside an activity: the details that it, or else an earlier attempt, reported last, as
        plain JSON; None when there are none."""
        return _pulse("heartbeat_details").reported()

    @property
    def token(self) -> str:
        """Inside an activity: what ``client.complete`` and ``client.fail`` know this attempt by,
        once it has called ``complete_later``. Letters, digits, '-' and '_'."""
        token = _in_step("token").token
        if token is None:
            raise _not_of_a_transaction("token")
        return str(token())

    def complete_later(self) -> NoReturn:
        """End this attempt of an activity without a result: whoever has its ``token`` will give
        it, from any process.

        Until then the step costs no thread, no task and no memory, and it is not run again; after
        its ``timeout``, counted from the attempt's begin, the attempt has failed. A completion may
        come before this call; it waits for it. Raises an exception that is not an ``Exception``.
        """
        if _in_step("complete_later()").token is None:
            raise _not_of_a_transaction("complete_later()")
        raise CompleteLater


def _in_step(what: str) -> StepContext:
    step = current_step.get()
    if step is None:
        raise ConfigurationError(f"self.{what} exists inside a step only; read it there")
    return step


def _pulse(what: str) -> Pulse:
    pulse = _in_step(what).pulse
    if pulse is None:
        raise _not_of_a_transaction(what)
    return pulse


def _not_of_a_transaction(what: str) -> ConfigurationError:
    return ConfigurationError(f"self.{what} is for activities; a transaction ends by itself, soon")
