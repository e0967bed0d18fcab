"""What travels beside a payload: headers, and the W3C trace context of who sent it.

Given by senders, with the handle or the envelope; read by handlers.
"""

import re
from collections.abc import Mapping
from typing import Final

from engine.core.errors import InvalidPayload

_TRACEPARENT: Final = re.compile(
    r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-[\x21-\x7e]*)?\Z"
)
_LONGEST: Final = 512


def checked_trace(trace: object) -> str | None:
    """A ``traceparent`` as it was given; ``InvalidPayload`` when it is none."""
    if trace is None:
        return None
    if not isinstance(trace, str) or len(trace) > _LONGEST or not _TRACEPARENT.match(trace):
        raise InvalidPayload(
            f"{trace!r} is no W3C traceparent; pass one such as"
            " '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', or leave trace= out"
        )
    return trace


def checked_headers(headers: object) -> dict[str, str]:
    """A copy of headers that can be stored; ``InvalidPayload`` names what cannot."""
    if headers is None:
        return {}
    if not isinstance(headers, Mapping):
        raise InvalidPayload(f"headers are a mapping of texts to texts, not {headers!r}")
    found: dict[str, str] = {}
    for name, value in headers.items():  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(name, str) or not isinstance(value, str):
            raise InvalidPayload(
                f"the header {name!r} is {value!r}; names and values of headers are texts"
            )
        found[name] = value
    return found
