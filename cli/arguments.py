"""Read what is typed on a command line into values; what cannot be meant is a ``UsageError``."""

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from cli.exits import UsageError

if TYPE_CHECKING:
    from engine.core.status import Status


def json_payload(text: str, *, what: str) -> bytes:
    """JSON as it was typed, or read from standard input for ``-``; checked, not changed."""
    if text == "-":
        text = sys.stdin.read()
    _load(text, what=what)
    return text.strip().encode()


def attributes(pairs: Sequence[str]) -> dict[str, object]:
    """``k=v`` pairs: v is JSON where it reads as such (``3``, ``true``, ``"3"``), else a text."""
    found: dict[str, object] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{pair!r} is not an attribute: write it as name=value")
        try:
            found[key] = json.loads(text, parse_constant=_refuse)
        except ValueError:
            found[key] = text
    return found


def statuses(words: Sequence[str]) -> "list[Status]":
    """The statuses by their words."""
    from engine.core.status import Status

    try:
        return [Status[word.upper()] for word in words]
    except KeyError as error:
        known = ", ".join(str(status) for status in Status)
        raise UsageError(f"there is no status {error.args[0].lower()!r}: use {known}") from None


def _load(text: str, *, what: str) -> object:
    try:
        loaded: object = json.loads(text, parse_constant=_refuse)
        text.encode()
    except RecursionError:
        raise UsageError(f"{what} is nested too deeply") from None
    except ValueError as error:
        hint = ': quote it for the shell, as in \'{"id": "o-42"}\' or \'"text"\''
        raise UsageError(f"{what} is not JSON ({_reason(error)}){hint}") from None
    return loaded


def _reason(error: ValueError) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.pos + 1}"
    return str(error)


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"JSON has no {name}")
