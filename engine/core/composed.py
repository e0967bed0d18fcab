"""The marked methods of a class: its own, and those of the groups it is composed of.

A group is any class with such methods that another inherits from, a definition itself or a plain
mixin. Read when a class is registered or called: by ``cluster.rpc_group`` for entities, by
``workflow.definition`` for workflows.
"""

from collections.abc import Callable
from typing import Protocol, TypeVar

from engine.core.errors import ConfigurationError


class Named(Protocol):
    """What a decorator leaves on a method."""

    @property
    def name(self) -> str: ...


D = TypeVar("D", bound=Named)


def composed(
    cls: type, read: Callable[[object], D | None], *, what: str, mark: str
) -> dict[str, D]:
    """The definitions by name; ``ConfigurationError`` where two groups have one of the same name
    and the class does not say which it means. ``what`` they are, and how they are marked."""
    found: dict[str, D] = {}
    for attribute in dir(cls):
        definition = _definition(cls, attribute, read, what, mark)
        if definition is not None:
            other = found.setdefault(definition.name, definition)
            if other is not definition:
                raise ConfigurationError(
                    f"{cls.__qualname__} has two {what}s named {definition.name!r};"
                    f" give one of them another name= in {mark}"
                )
    return found


def _definition(
    cls: type, name: str, read: Callable[[object], D | None], what: str, mark: str
) -> D | None:
    """The definition behind an attribute, if it is one for every class that has it."""
    definers = [each for each in cls.__mro__ if name in vars(each)]
    if not definers:
        return None
    first = definers[0]
    definition = read(vars(first)[name])
    for other in definers[1:]:
        hidden = read(vars(other)[name])
        if definition is None and hidden is None:
            continue
        if not issubclass(first, other):
            raise ConfigurationError(
                f"{cls.__qualname__} gets {name!r} from {first.__qualname__} and from"
                f" {other.__qualname__}, and one would hide the other's {what}; rename one, or"
                f" define {name!r} in {cls.__qualname__}, where it may call either"
            )
        if definition is None and callable(vars(first)[name]):
            raise ConfigurationError(
                f"{first.__qualname__}.{name} replaces a {what} of {other.__qualname__} and is"
                f" none itself; mark it {mark} too, or rename it"
            )
    return definition
