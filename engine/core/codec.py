"""User values to bytes and back: JSON by pydantic, one cached adapter per type and signature.

Above this module values have types; below it, in ``storage``, they are bytes. Nothing in stored
data ever names a class to load.
"""

import hashlib
import inspect
import json
import math
import typing
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, Generic, NotRequired, Required, TypeVar, cast

from pydantic import (
    PydanticSchemaGenerationError,
    PydanticUndefinedAnnotation,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticSerializationError
from typing_extensions import TypedDict

from engine.core.canonical import set_sorter
from engine.core.errors import ConfigurationError, InvalidPayload
from engine.core.seal import unreadable

T = TypeVar("T")
_NO_KEYS = frozenset({"tuple", "list", "dict", "model", "dataclass", "typed-dict", "frozenset"})
_NO_VALUES = {"callable": "a callable", "is-subclass": "a class"}
_NO_SCHEMA = frozenset({"default", "expected", "metadata"})
_PLAIN: tuple[object, ...] = (str, int, float, bool, type(None))


class ValueCodec(Generic[T]):
    """Encodes and decodes values of one annotated type. ``what`` names it in errors."""

    __slots__ = ("_adapter", "_plain", "_sort", "what")

    def __init__(self, annotation: object, *, what: str) -> None:
        self.what: str = what
        self._adapter: TypeAdapter[T] = _adapter(annotation, what)
        self._sort = set_sorter(self._adapter)
        self._plain = annotation if annotation in _PLAIN else type(None)

    def encode(self, value: T) -> bytes:
        """JSON bytes; ``InvalidPayload`` when the value has no JSON form of this type."""
        _refuse_not_finite(self.what, value)
        try:
            payload = self._adapter.serializer.to_json(
                value, warnings="error", by_alias=False, round_trip=True
            )
            return payload if self._sort is None else self._sort(payload)
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise InvalidPayload(
                f"{self.what} cannot be encoded: {_first_line(error)};"
                " annotate it with the type it has, or return plain JSON or a pydantic model"
            ) from error

    def decode(self, payload: bytes) -> T:
        """The value; ``InvalidPayload`` naming the field when the bytes do not validate."""
        try:
            return self._adapter.validate_json(payload, by_alias=True, by_name=True)
        except Exception as error:  # a user's validator may raise anything
            raise _undecodable(self.what, payload, error) from error

    def validate(self, value: object) -> T:
        """The value as its type; ``InvalidPayload`` naming the field when it does not fit."""
        try:
            return self._adapter.validate_python(value, by_alias=True, by_name=True)
        except Exception as error:  # as above
            raise InvalidPayload(f"{self.what} does not validate: {_fields(error)}") from error

    def settle(self, value: T) -> tuple[bytes, T]:
        """Encode a value, and give back what a replay will decode: both runs see the same."""
        payload = self.encode(value)
        if value is None or type(value) is self._plain:
            return payload, value
        return payload, self.decode(payload)


class Signature:
    """The parameters of a step or handler, encoded as one JSON object by name.

    ``skip`` leading parameters (``self``, a transaction) are not part of it.
    """

    __slots__ = ("_adapter", "_arguments", "_bind", "_by_name", "_names", "_sort", "result", "what")

    def __init__(self, function: Callable[..., object], *, what: str, skip: int = 1) -> None:
        self.what: str = what
        self._arguments = f"the arguments of {what}"
        hints = _hints(function, what)
        parameters = list(inspect.signature(function).parameters.values())[skip:]
        self._bind = inspect.Signature(parameters)
        self._by_name = all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters)
        simple = all(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
        self._names = [p.name for p in parameters] if simple else None
        fields = {p.name: _field(p, hints.get(p.name, Any)) for p in parameters}
        make: Any = TypedDict  # type checkers take literal fields only
        shape = make("Arguments", fields)
        shape.__pydantic_config__ = {"extra": "forbid", "arbitrary_types_allowed": False}
        self._adapter: TypeAdapter[dict[str, Any]] = _adapter(shape, self._arguments)
        self._sort = set_sorter(self._adapter)
        returned = hints.get("return", Any)
        self.result: ValueCodec[Any] = ValueCodec(
            _item(returned) if inspect.isasyncgenfunction(function) else returned,
            what=f"the result of {what}",
        )

    def bind(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> dict[str, object]:
        """Arguments by name, defaults left out; ``TypeError`` where Python's own call would."""
        names = self._names
        if names is not None and not kwargs and len(args) == len(names):
            return dict(zip(names, args, strict=True))
        try:
            return dict(self._bind.bind(*args, **kwargs).arguments)
        except TypeError as error:
            raise TypeError(f"{self.what}{self._bind}: {error}") from None

    def encode(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bytes:
        """The call as JSON bytes, not validated; ``InvalidPayload`` when it has no JSON form."""
        return self._dump(self.bind(args, kwargs))

    def validated(self, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bytes:
        """As ``encode``, after validating each argument; errors name the argument."""
        bound = self.bind(args, kwargs)
        try:
            valid = self._adapter.validate_python(bound, by_alias=True, by_name=True)
        except Exception as error:  # as above
            raise InvalidPayload(f"{self._arguments} do not validate: {_fields(error)}") from error
        return self._dump(valid)

    def decode(self, payload: bytes) -> tuple[list[object], dict[str, object]]:
        """Positional and keyword arguments for the call; ``InvalidPayload`` naming the field."""
        try:
            named = self._adapter.validate_json(payload, by_alias=True, by_name=True)
        except Exception as error:  # as above
            raise _undecodable(self._arguments, payload, error) from error
        if self._by_name:
            return [], named
        bound = inspect.BoundArguments(self._bind, OrderedDict(named))
        return list(bound.args), dict(bound.kwargs)

    def _dump(self, named: dict[str, object]) -> bytes:
        for value in named.values():
            _refuse_not_finite(self._arguments, value)
        try:
            payload = self._adapter.serializer.to_json(
                named, warnings=False, by_alias=False, round_trip=True
            )
            return payload if self._sort is None else self._sort(payload)
        except (PydanticSerializationError, ValueError, RecursionError) as error:
            raise InvalidPayload(
                f"{self._arguments} cannot be encoded: {_first_line(error)}"
            ) from error


def digest(payload: bytes) -> int:
    """64 bits of a payload, as a signed integer: enough to notice that arguments changed."""
    return int.from_bytes(hashlib.blake2b(payload, digest_size=8).digest(), "big", signed=True)


def same_json(one: bytes, other: bytes) -> bool:
    """Whether two payloads say the same, whatever their key order and spacing; ``InvalidPayload``
    when nobody can tell, since the stored one cannot be decoded here."""
    if one == other:
        return True
    told = unreadable(one) or unreadable(other)
    if told is not None:
        raise InvalidPayload(f"what was stored under this key is {told}")
    try:
        return _alike(json.loads(one), json.loads(other))
    except (ValueError, RecursionError):
        return False


def _alike(one: Any, other: Any) -> bool:
    """Equality, but ``true`` is not 1."""
    if type(one) is type(other) is dict:
        return one.keys() == other.keys() and all(_alike(one[key], other[key]) for key in one)
    if type(one) is type(other) is list:
        return len(one) == len(other) and all(map(_alike, one, other))
    return bool(one == other) and (type(one) is bool) is (type(other) is bool)


def _refuse_not_finite(what: str, value: object) -> None:
    """JSON would turn it into null, and a replay would see something else than the first run."""
    if type(value) is float and not math.isfinite(value):
        raise InvalidPayload(f"{what} cannot be encoded: JSON has no {value}; use None instead")


def _field(parameter: inspect.Parameter, annotation: Any) -> Any:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return NotRequired[list[annotation]]
    if parameter.kind is parameter.VAR_KEYWORD:
        return NotRequired[dict[str, annotation]]
    if parameter.default is parameter.empty:
        return Required[annotation]
    return NotRequired[annotation]


def _item(annotation: Any) -> Any:
    items = typing.get_args(annotation)
    return items[0] if items else Any


def _hints(function: Callable[..., object], what: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError) as error:
        raise ConfigurationError(
            f"the annotations of {what} cannot be resolved: {error};"
            " import the types it names at the top of its module, not under TYPE_CHECKING"
        ) from error


@lru_cache(maxsize=4096)
def _hashable_adapter(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation)


def _adapter(annotation: Any, what: str) -> TypeAdapter[Any]:
    try:
        try:
            adapter = _hashable_adapter(annotation)
        except TypeError:
            adapter = TypeAdapter(annotation)
        wrong = _not_json(adapter.core_schema)
    except (PydanticSchemaGenerationError, PydanticUndefinedAnnotation) as error:
        raise _refusal(what, _first_line(error)) from error
    if wrong is not None:
        raise _refusal(what, wrong)
    return adapter


def _refusal(what: str, wrong: str) -> ConfigurationError:
    return ConfigurationError(
        f"{what} has a type that JSON cannot carry: {wrong};"
        " use plain JSON types, dataclasses, TypedDicts or pydantic models"
    )


def _not_json(schema: object) -> str | None:
    """What in a pydantic schema can be validated but not stored and read again, if anything."""
    if isinstance(schema, list | tuple):
        parts = list(cast("list[object]", schema))
    elif isinstance(schema, dict):
        node = cast("dict[str, Any]", schema)
        kind = node.get("type")
        if "serialization" in node:
            return None  # its author has seen to it
        if kind == "dict" and node.get("keys_schema", {}).get("type") in _NO_KEYS:
            return f"a dict whose keys are of type {node['keys_schema']['type']}"
        if kind in _NO_VALUES:
            return _NO_VALUES[kind]
        parts = [part for name, part in node.items() if name not in _NO_SCHEMA]
        if kind == "json-or-python":
            parts = [node["json_schema"]]
    else:
        return None
    return next((wrong for part in parts if (wrong := _not_json(part)) is not None), None)


def _undecodable(what: str, payload: bytes, error: Exception) -> InvalidPayload:
    told = unreadable(payload)
    if told is not None:
        return InvalidPayload(f"{what}: it is {told}")
    verb = "do" if what.startswith("the arguments") else "does"
    return InvalidPayload(f"{what} {verb} not validate: {_fields(error)}")


def _first_line(error: Exception) -> str:
    """The line that says what is wrong: pydantic's warnings have a heading."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[1].strip() if len(lines) > 1 and lines[0].endswith("warnings:") else lines[0]


def _fields(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {_first_line(error)}"
    if error.error_count() > _LISTED:
        return f"{error.error_count()} values in it do not fit"
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return "; ".join(
        f"{'.'.join(str(part) for part in each['loc']) or 'value'}: {each['msg']}"
        for each in found[:5]
    )


_LISTED = 1000
"""More errors than that are counted and not looked at, which takes a kilobyte for each."""
