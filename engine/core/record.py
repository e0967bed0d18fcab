"""Values that are made for every message and every event, as cheaply as Python can."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def record(cls: type[T]) -> type[T]:
    """A dataclass with slots and keywords, frozen for type checkers only: to keep assignments out
    at run time too costs each field an ``object.__setattr__``, three times the rest together."""
    make: Callable[[type[T]], type[T]] = dataclass(slots=True, kw_only=True, unsafe_hash=True)
    return make(cls)
