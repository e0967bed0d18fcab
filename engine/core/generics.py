"""What a subclass of a generic base class takes and gives, from its annotations.

Read by ``workflow.definition`` for ``execute`` and by ``cluster.queue`` for ``process``.
"""

import typing
from typing import Any, TypeVar

from engine.core.errors import ConfigurationError


def types_of(cls: type, base: type, method: str) -> tuple[Any, Any]:
    """The types of a method's one argument and of its result: as the method is annotated, else as
    ``cls`` says by the two parameters of ``base``; ``ConfigurationError`` when that names what
    cannot be resolved."""
    try:
        hints = typing.get_type_hints(getattr(cls, method), include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigurationError(
            f"the annotations of {cls.__qualname__}.{method} cannot be resolved: {error};"
            " import the types it names at the top of its module, not under TYPE_CHECKING"
        ) from error
    declared = list(_variables(cls, base, {}).values())
    result = hints.pop("return", declared[1])
    given = next(iter(hints.values()), declared[0])
    author = next(each for each in cls.__mro__ if method in vars(each))
    known = _variables(cls, author, {})
    return _substitute(given, known), _substitute(result, known)


def _variables(cls: type, ancestor: type, known: dict[object, Any]) -> dict[object, Any]:
    """What the type variables of a generic ancestor stand for in a class."""
    if cls is ancestor:
        return {each: known.get(each, Any) for each in getattr(cls, "__parameters__", ())}
    for base in vars(cls).get("__orig_bases__", cls.__bases__):
        origin = typing.get_origin(base) or base
        if isinstance(origin, type) and issubclass(origin, ancestor):
            given = [_substitute(each, known) for each in typing.get_args(base)]
            names = getattr(origin, "__parameters__", ())
            return _variables(origin, ancestor, dict(zip(names, given, strict=False)))
    return {}


def _substitute(annotation: Any, known: dict[object, Any]) -> Any:
    if isinstance(annotation, TypeVar):
        return known.get(annotation, Any)
    variables = getattr(annotation, "__parameters__", ())
    if not variables or isinstance(annotation, type):
        return annotation
    return annotation[tuple(known.get(variable, Any) for variable in variables)]
