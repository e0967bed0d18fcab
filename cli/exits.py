"""How a command ends: its exit code, and the one message it leaves on standard error."""

from enum import IntEnum
from typing import Protocol, runtime_checkable


class ExitCode(IntEnum):
    """What scripts may rely on."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    TIMED_OUT = 4
    INTERRUPTED = 5
    UNREACHABLE = 7
    CTRL_C = 130


class CommandError(Exception):
    """A command cannot go on; the message says what to do."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.code = code


class UsageError(CommandError):
    """An argument or option that cannot be meant."""

    def __init__(self, message: str) -> None:
        super().__init__(message, ExitCode.USAGE)


@runtime_checkable
class Complaint(Protocol):
    """What the command-line parser raises, whichever copy of click it comes from."""

    exit_code: int

    def format_message(self) -> str: ...


def explain(error: BaseException) -> tuple[str, int]:
    """The message and the exit code of an error."""
    from engine.core.errors import innermost

    error = innermost(error)
    if isinstance(error, CommandError):
        return str(error), error.code
    if isinstance(error, KeyboardInterrupt):
        return "", ExitCode.CTRL_C
    if isinstance(error, Complaint):
        return _without_full_stop(error.format_message()), ExitCode.USAGE
    return _engine_error(error)


def _engine_error(error: BaseException) -> tuple[str, int]:
    from engine.core import errors

    match error:
        case errors.StorageUnavailable():
            return str(error), ExitCode.UNREACHABLE
        case errors.NotFound() | errors.NotRegistered():
            return str(error), ExitCode.NOT_FOUND
        case errors.ExecutionInterrupted() | errors.ExecutionTerminated():
            return str(error), ExitCode.INTERRUPTED
        case errors.ConfigurationError() | errors.InvalidPayload():
            return str(error), ExitCode.USAGE
        case errors.EngineError():
            return str(error), ExitCode.FAILED
        case TimeoutError():
            return str(error) or "time ran out", ExitCode.TIMED_OUT
        case _:
            return (
                f"unexpected {type(error).__name__}: {error}; --debug shows where",
                ExitCode.FAILED,
            )


def _without_full_stop(message: str) -> str:
    return message.strip().removesuffix(".")
