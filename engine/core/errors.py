"""Every error the engine raises on purpose. Each message says what to do.

    EngineError
    ├── ConfigurationError        a setting, definition or registration that cannot work
    ├── SchemaMismatch            the database's schema is missing, older or newer than this code
    ├── NotRegistered             nothing serves that workflow, entity or method
    ├── NotFound                  no such execution, request or runner
    ├── InvalidPayload            a value that cannot be encoded or does not validate
    ├── PayloadConflict           the same key with another payload
    ├── AlreadyStarted            the key is taken, and the caller wanted to be the first
    ├── FailureError              something that ran elsewhere ended with an error: ``.error``
    │   ├── ExecutionFailed       … an execution that was joined
    │   ├── RequestFailed         … an entity's handler that was called
    │   └── StepFailed            … a step, inside a workflow's body
    │       └── StepTimedOut      … because its time ran out (also a ``TimeoutError``)
    ├── ExecutionInterrupted      the execution was interrupted: ``.reason``
    ├── ExecutionTerminated       the execution was terminated: ``.reason``
    ├── UpdateRejected            an update's validator refused it
    ├── GiveUp                    raised by a step: no attempt follows, whatever its policy
    ├── RetryLater                raised by a step: the next attempt follows ``after`` so long
    ├── NonDeterminism            a replay met code that asks for something else
    ├── EntityDefect              raised by a handler: its entity in memory must be built anew
    ├── MailboxFull               a volatile message met a full mailbox
    ├── NoRunner                  a volatile message to a shard that no runner owns
    ├── StreamTaken               another consumer took chunks of the same stream
    ├── ShuttingDown              the runner is stopping and takes nothing new
    ├── OwnershipLost             a write of an earlier owner, refused
    └── StorageUnavailable        the database cannot be reached or refused the work
        └── NotGranted            the login lacks a right that ``outlast grants`` prints

Time-outs are the built-in ``TimeoutError``.
"""

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Self, cast


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """An exception as it is stored: what a joiner in another process gets to see."""

    type: str
    message: str
    traceback: str = ""
    details: object = None
    cause: "ErrorDetails | None" = None

    @classmethod
    def of(cls, error: BaseException, depth: int = 8) -> Self:
        """Describe an exception and, ``depth`` deep, what caused it: of a group, its first.

        Whatever the exception's own methods do, this does not fail.
        """
        cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        cause = cause or _first_of(error)
        if isinstance(error, FailureError) and cause is None:
            inner: ErrorDetails | None = error.error
        else:
            inner = cls.of(cause, depth - 1) if cause is not None and depth > 0 else None
        return cls(
            type=type(error).__qualname__,
            message=_message(error),
            traceback="".join(traceback.format_tb(error.__traceback__)),
            details=_details(error),
            cause=inner,
        )

    @property
    def root(self) -> "ErrorDetails":
        """What went wrong, without what the engine has put around it."""
        return self.cause.root if self.cause and self.type in _WRAPPERS else self

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


_WRAPPERS = frozenset({"StepFailed", "StepTimedOut", "RequestFailed"})


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        return "an exception whose message cannot be read"


def _details(error: BaseException) -> object:
    try:
        return getattr(error, "details", None)
    except Exception:  # noqa: BLE001 - a user's property may raise anything
        return None


def _first_of(error: BaseException) -> BaseException | None:
    """The first of a group of exceptions; None for any other."""
    if not isinstance(error, BaseExceptionGroup):
        return None
    group = cast("BaseExceptionGroup[BaseException]", error)
    return group.exceptions[0]


class EngineError(Exception):
    """The root of the engine's own errors."""


class ConfigurationError(EngineError):
    """A setting, definition or registration that cannot work; the message names the fix."""


class SchemaMismatch(EngineError):
    """The database's schema does not fit this code."""


class NotRegistered(EngineError):
    """No runner serves that workflow, entity or method."""


class NotFound(EngineError):
    """No such execution, request or runner."""


class InvalidPayload(EngineError):
    """A value that cannot be encoded, or stored bytes that do not validate."""


class PayloadConflict(EngineError):
    """A key that is taken was used again with another payload."""


class AlreadyStarted(EngineError):
    """The execution was started before, by a caller who asked to be told."""


class FailureError(EngineError):
    """Work that ran elsewhere ended with an exception."""

    def __init__(self, message: str, error: ErrorDetails) -> None:
        super().__init__(message)
        self.error = error

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[str, ErrorDetails]]:
        return type(self), (str(self), self.error)


class ExecutionFailed(FailureError):
    """The execution that was joined ended with an exception."""


class RequestFailed(FailureError):
    """The entity's handler that was called ended with an exception."""


class StepFailed(FailureError):
    """A step of this workflow ended with an exception, after all its attempts."""


class StepTimedOut(StepFailed, TimeoutError):
    """A step of this workflow ran out of time, after all its attempts."""


class ExecutionInterrupted(EngineError):
    """The execution was interrupted before it had a result."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the execution was interrupted")
        self.reason = reason


class ExecutionTerminated(EngineError):
    """The execution was terminated before it had a result."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason or "the execution was terminated")
        self.reason = reason


class UpdateRejected(EngineError):
    """The update's validator refused it; nothing of it was recorded."""


class GiveUp(EngineError):
    """Raise it in a step whose failure is final: no attempt follows, whatever its policy says."""


class RetryLater(EngineError):
    """Raise it in a step to say when the next attempt may come; the number of attempts stays that
    of its policy.

    >>> from datetime import timedelta
    >>> RetryLater("busy", after=timedelta(minutes=5)).after.seconds
    300
    """

    def __init__(self, message: str = "", *, after: timedelta) -> None:
        super().__init__(message or f"not before {after.total_seconds():g} s from now")
        self.after = after

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[str]]:
        return partial(type(self), after=self.after), (str(self),)


class NonDeterminism(EngineError):
    """A replay met code that asks for something else than its journal holds."""

    def __init__(self, *, expected: str, found: str, where: str) -> None:
        super().__init__(
            f"the journal holds {expected}, but the code now {found} ({where});"
            " restore the code this execution began with, or guard the change with"
            " self.patched(...): it goes on by itself on a runner whose code fits. If the code has"
            " not changed, it asks for something that differs from run to run, such as the time:"
            " 'outlast lint' shows where"
        )
        self.expected = expected
        self.found = found
        self.where = where

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[()]]:
        named = {"expected": self.expected, "found": self.found, "where": self.where}
        return partial(type(self), **named), ()


class EntityDefect(EngineError):
    """Raise it in a handler when what the entity keeps in memory can no longer be trusted.

    The instance is dropped and built anew after a back-off, and its requests are handled again, up
    to ``max_deliveries`` times. Any other exception is only its caller's failure.
    """


class MailboxFull(EngineError):
    """A volatile message met a full mailbox."""


class NoRunner(EngineError):
    """No runner owns the shard that a volatile message is for; it was not delivered."""


class StreamTaken(EngineError):
    """Another consumer of the same stream acknowledged chunks that this one has not seen."""


class ShuttingDown(EngineError):
    """The runner that was asked is stopping: ask another, or its ``client`` while it is there."""


class OwnershipLost(EngineError):
    """A late write of an owner whose session is gone: refused, never sent again."""


class StorageUnavailable(EngineError):
    """The database cannot be reached, or refused the work for a reason of its own."""


class NotGranted(StorageUnavailable):
    """The login may not do this: the message says what grants it. Trying again does not help, but
    whoever runs already goes on trying, since rights may be given back."""


def innermost(error: BaseException) -> BaseException:
    """The error inside task groups, where there is one only."""
    while isinstance(error, BaseExceptionGroup):
        inside: tuple[BaseException, ...] = error.exceptions  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if len(inside) != 1:
            break
        error = inside[0]
    return error  # pyright: ignore[reportUnknownVariableType]
