"""Which names definitions may have, and which ids entities and executions may have."""

import hashlib
import re

from engine.core.errors import ConfigurationError, InvalidPayload

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,127}\Z")
_ID_LIMIT = 255


def definition_name(name: object, *, what: str) -> str:
    """A workflow's, entity's, step's or handler's name, or ``ConfigurationError``."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise ConfigurationError(
            f"{what} cannot be named {name!r}: use up to 128 letters, digits, '_', '-' and '.',"
            " beginning with a letter"
        )
    return name


def entity_id(id: object, *, what: str) -> str:
    """An id as given, hashed when longer than 255 characters; ``InvalidPayload`` if unusable."""
    if not isinstance(id, str) or not id or "\x00" in id or not id.isprintable():
        raise InvalidPayload(f"{what} must be a non-empty printable string, not {id!r}")
    return id if len(id) <= _ID_LIMIT else f"sha256:{hashlib.sha256(id.encode()).hexdigest()}"


def refuse_reserved(cls: type, reserved: frozenset[str], allowed: frozenset[str]) -> None:
    """Refuse a class attribute that would hide one the base class gives a meaning."""
    for name in cls.__dict__:
        if name in reserved and name not in allowed and not name.startswith("__"):
            raise ConfigurationError(
                f"{cls.__qualname__}.{name} hides {name} of the base class; rename it, for example"
                f" to {name}_"
            )
