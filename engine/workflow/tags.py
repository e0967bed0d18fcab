"""The messages an execution understands, by the tag of their envelope.

A resolution's payload is the encoded value; that of a rejection, and of an interrupt, is JSON text.
"""

import json

from engine.core.errors import InvalidPayload

RUN = "run"
INTERRUPT = "interrupt"
RETRY = "retry"
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


def encode_text(text: str) -> bytes:
    return json.dumps(text).encode()


def decode_text(payload: bytes) -> str:
    """The text of an interrupt or rejection; ``InvalidPayload`` when it is not one."""
    try:
        return str(json.loads(payload))
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"a message's text cannot be read: {error}") from error
