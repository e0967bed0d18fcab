"""The messages an execution understands, by the tag of their envelope.

A resolution's payload is the encoded value; that of a rejection, and of an interrupt, is JSON text.
"""

import json
from collections.abc import Mapping
from datetime import datetime

from engine.core.envelope import dedup_key
from engine.core.errors import InvalidPayload

RUN = "run"
INTERRUPT = "interrupt"
TERMINATE = "terminate"
RETRY = "retry"
DEADLINE = "outlast-deadline"
"""The header of a run request that says until when its execution must have ended."""
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
    """Until when an execution must have ended."""
    stored = headers.get(DEADLINE)
    return None if stored is None else datetime.fromisoformat(stored)


def encode_text(text: str) -> bytes:
    return json.dumps(text).encode()


def decode_text(payload: bytes) -> str:
    """The text of an interrupt or rejection; ``InvalidPayload`` when it is not one."""
    try:
        return str(json.loads(payload))
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"a message's text cannot be read: {error}") from error
