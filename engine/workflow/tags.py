"""The messages an execution understands, by the tag of their envelope.

A resolution's payload is the encoded value, that of a rejection JSON text; that of an interrupt, a
pause and the like says why, and who wants it.
"""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import cast

from engine.core.envelope import dedup_key
from engine.core.errors import InvalidPayload
from engine.core.seal import unreadable

RUN = "run"
INTERRUPT = "interrupt"
TERMINATE = "terminate"
RETRY = "retry"
PAUSE = "pause"
RESUME = "resume"
DEADLINE = "outlast-deadline"
"""The header of a run request that says until when its execution must have ended."""
_TIMEOUT = "outlast-timeout"
"""... and for how many seconds from its beginning on."""
_SIGNAL = "signal:"
_UPDATE = "update:"
_QUERY = "query:"
_RESOLVE = "resolve:"
_REJECT = "reject:"


def resolve_tag(deferred: str) -> str:
    return _RESOLVE + deferred


def reject_tag(deferred: str) -> str:
    return _REJECT + deferred


def deferred_of(tag: str) -> tuple[str, bool] | None:
    """The deferred a tag speaks of and whether it resolves it; None for another kind of message."""
    if tag.startswith(_RESOLVE):
        return tag[len(_RESOLVE) :], True
    if tag.startswith(_REJECT):
        return tag[len(_REJECT) :], False
    return None


def deferred_key(workflow: str, id: str, deferred: str) -> str:
    """What resolutions and rejections of one execution's deferred are deduplicated by."""
    return dedup_key("deferred", workflow, f"{len(id)}.{id}/{deferred}")


def signal_tag(name: str) -> str:
    return _SIGNAL + name


def update_tag(name: str) -> str:
    return _UPDATE + name


def query_tag(name: str) -> str:
    return _QUERY + name


def signal_of(tag: str) -> str | None:
    """The signal that a tag speaks of, if it is one's."""
    return tag[len(_SIGNAL) :] if tag.startswith(_SIGNAL) else None


def update_of(tag: str) -> str | None:
    return tag[len(_UPDATE) :] if tag.startswith(_UPDATE) else None


def query_of(tag: str) -> str | None:
    return tag[len(_QUERY) :] if tag.startswith(_QUERY) else None


def deadline_in(headers: Mapping[str, str]) -> datetime | None:
    """Until when an execution must have ended; ``InvalidPayload`` when that is no time."""
    stored = headers.get(DEADLINE)
    if stored is None:
        return None
    try:
        deadline = datetime.fromisoformat(stored)
    except ValueError as error:
        raise InvalidPayload(f"its header {DEADLINE} is no time: {error}") from error
    if deadline.tzinfo is None:
        raise InvalidPayload(f"its header {DEADLINE} is a time without a zone: {stored}")
    return deadline


def deadline_headers(begins: datetime, timeout: timedelta) -> dict[str, str]:
    """Those of an execution that has so long from when it begins."""
    return {DEADLINE: (begins + timeout).isoformat(), _TIMEOUT: str(timeout.total_seconds())}


def begun_anew(headers: Mapping[str, str], now: datetime) -> dict[str, str]:
    """The same headers for an execution that begins now, and has as much time as it had;
    ``InvalidPayload`` when nobody can tell how much that was."""
    seconds = headers.get(_TIMEOUT)
    if seconds is None:
        return dict(headers)
    try:
        return {**headers, **deadline_headers(now, timedelta(seconds=float(seconds)))}
    except (ValueError, OverflowError) as error:
        raise InvalidPayload(f"its header {_TIMEOUT} is no number of seconds: {error}") from error


def encode_text(text: str) -> bytes:
    return json.dumps(text).encode()


def encode_order(reason: str, by: str) -> bytes:
    """What somebody wants of an execution, and who: it becomes the payload of a journal row."""
    return json.dumps({"reason": reason, "by": by}).encode()


def decode_text(payload: bytes) -> str:
    """The text of a rejection, or why somebody ordered what he did; ``InvalidPayload``."""
    return decode_order(payload)[0]


def decode_reason(payload: bytes) -> str:
    """As ``decode_text``, of what is done also when nobody can read why."""
    try:
        return decode_text(payload)
    except InvalidPayload as error:
        return str(error)


def decode_order(payload: bytes) -> tuple[str, str]:
    """Why somebody wants something, and who (empty: an execution); ``InvalidPayload``."""
    try:
        told = json.loads(payload)
        if not isinstance(told, dict):
            return str(told), ""
        order = cast("dict[str, object]", told)
        return str(order.get("reason", "")), str(order.get("by", ""))
    except (ValueError, RecursionError) as error:
        told = unreadable(payload) or f"unreadable: {error}"
        raise InvalidPayload(f"a message's text is {told}") from error
