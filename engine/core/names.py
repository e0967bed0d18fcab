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


def refuse_reserved(
    cls: type,
    base: type,
    *,
    reserved: frozenset[str],
    options: frozenset[str],
    overridable: frozenset[str] = frozenset(),
) -> None:
    """Refuse an attribute of a class, or of its mixins, that would hide one ``base`` gives a
    meaning. ``options`` may be set to plain values, what is ``overridable`` to methods as well."""
    for each in cls.__mro__[: cls.__mro__.index(base)]:
        for name, value in vars(each).items():
            if name in overridable or (name in options and not callable(value)):
                continue
            if name in reserved or name in options:
                raise _hides(f"{each.__qualname__}.{name}", name, base)


def refuse_hidden(prototype: object, base: type, *, reserved: frozenset[str]) -> None:
    """Refuse an attribute of an object, set in its ``__init__``, that hides one of ``base``."""
    for name in vars(prototype):
        if name in reserved:
            raise _hides(f"self.{name} of {type(prototype).__qualname__}", name, base)


def _hides(what: str, name: str, base: type) -> ConfigurationError:
    return ConfigurationError(
        f"{what} hides {base.__name__}.{name}, which has a meaning of its own; rename it, for"
        f" example to {name}_"
    )
