"""An answer as it travels: chunks of a stream, and the one exit that ends a request.

Made by ``cluster`` and ``workflow``; stored by ``storage``; awaited by clients.
"""

import json
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, assert_never

from engine.core.errors import ErrorDetails, InvalidPayload
from engine.core.ids import Snowflake
from engine.core.seal import unreadable

RUNNER_LOST: Final = "RunnerLost"
"""The type of the defect that a volatile message ends in when its runner is gone."""
_CAUSES = 64


@dataclass(frozen=True, slots=True)
class Success:
    """The handler returned; ``value`` is its encoded result."""

    value: bytes


@dataclass(frozen=True, slots=True)
class Failure:
    """The handler raised."""

    error: ErrorDetails


@dataclass(frozen=True, slots=True)
class Interrupted:
    """It was interrupted before it had a result; its cleanup ran."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Terminated:
    """It was terminated before it had a result; nothing of it ran again."""

    reason: str = ""


@dataclass(frozen=True, slots=True)
class Defect:
    """The request could not be handled at all: undecodable, or delivered in vain too often."""

    error: ErrorDetails


Exit = Success | Failure | Interrupted | Terminated | Defect


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyChunk:
    """One element of a stream. Sequences start at 0 and have no gaps."""

    request_id: Snowflake
    sequence: int
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyWithExit:
    """The end of a request."""

    request_id: Snowflake
    exit: Exit


Reply = ReplyChunk | ReplyWithExit


class ReplyKind(IntEnum):
    """How a stored reply is to be read."""

    CHUNK = 0
    SUCCESS = 1
    FAILURE = 2
    INTERRUPTED = 3
    TERMINATED = 4
    DEFECT = 5


def encode_exit(exit: Exit) -> tuple[ReplyKind, bytes]:
    """The kind and bytes an exit is stored as."""
    match exit:
        case Success(value):
            return ReplyKind.SUCCESS, value
        case Failure(error):
            return ReplyKind.FAILURE, encode_error(error)
        case Interrupted(reason):
            return ReplyKind.INTERRUPTED, json.dumps(reason).encode()
        case Terminated(reason):
            return ReplyKind.TERMINATED, json.dumps(reason).encode()
        case Defect(error):
            return ReplyKind.DEFECT, encode_error(error)
        case _:
            assert_never(exit)


def decode_exit(kind: ReplyKind, payload: bytes) -> Exit:
    """The exit that was stored; ``InvalidPayload`` when the bytes are not of its kind."""
    match kind:
        case ReplyKind.SUCCESS:
            return Success(payload)
        case ReplyKind.FAILURE:
            return Failure(decode_error(payload))
        case ReplyKind.INTERRUPTED:
            return Interrupted(_text(payload))
        case ReplyKind.TERMINATED:
            return Terminated(_text(payload))
        case ReplyKind.DEFECT:
            return Defect(decode_error(payload))
        case ReplyKind.CHUNK:
            raise InvalidPayload("a stored chunk was read as an exit; the replies table is damaged")
        case _:
            assert_never(kind)


def encode_error(error: ErrorDetails) -> bytes:
    """An error as JSON bytes; details that JSON has no form for are stored as their ``repr``.

    Never fails: it is what is left to say about a failure.
    """
    return json.dumps(_error_tree(error)).encode()


def decode_error(payload: bytes) -> ErrorDetails:
    """The stored error; ``InvalidPayload`` when the bytes are not one."""
    try:
        return _error_from(json.loads(payload))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        told = unreadable(payload) or f"unreadable: {error}"
        raise InvalidPayload(f"a stored error is {told}") from error


def _error_tree(error: ErrorDetails, depth: int = _CAUSES) -> dict[str, object]:
    cause = _error_tree(error.cause, depth - 1) if error.cause is not None and depth else None
    return {
        "type": error.type,
        "message": error.message,
        "traceback": error.traceback,
        "details": _details(error.details),
        "cause": cause,
    }


def _details(details: object) -> object:
    """The details as JSON has them, or in words."""
    try:
        return json.loads(json.dumps(details, default=repr, allow_nan=False))
    except Exception:  # noqa: BLE001 - a user's __repr__ may raise anything
        return f"details of type {type(details).__name__} that JSON has no form for"


def _error_from(tree: dict[str, object]) -> ErrorDetails:
    cause = tree.get("cause")
    return ErrorDetails(
        type=str(tree["type"]),
        message=str(tree["message"]),
        traceback=str(tree.get("traceback") or ""),
        details=tree.get("details"),
        cause=_error_from(cause) if isinstance(cause, dict) else None,  # pyright: ignore[reportUnknownArgumentType]
    )


def _text(payload: bytes) -> str:
    try:
        text = json.loads(payload)
    except (ValueError, RecursionError) as error:
        told = unreadable(payload) or f"unreadable: {error}"
        raise InvalidPayload(f"a stored interrupt is {told}") from error
    if not isinstance(text, str):
        raise InvalidPayload("a stored interrupt cannot be read: its reason is not a text")
    return text
