"""Codecs as settings name them: objects, or ``module:attribute``.

For ``Settings``. Errors name the codec and what is wrong, never what a codec holds.
"""

import importlib
import inspect
from collections.abc import Sequence
from typing import cast

from typing_extensions import TypeIs

from engine.core.errors import ConfigurationError
from engine.core.seal import Codec


def codecs_named(names: str) -> tuple[Codec, ...]:
    """The codecs of ``module:attribute, module:attribute``; ``ValueError``."""
    return checked_codecs([_named(name.strip()) for name in names.split(",") if name.strip()])


def checked_codecs(value: object) -> tuple[Codec, ...]:
    """One codec or several, each of another number; ``ValueError``."""
    several = cast("Sequence[object]", value) if isinstance(value, Sequence) else [value]
    codecs: list[Codec] = []
    for codec in several:
        if not _is_codec(codec):
            raise ValueError(
                f"{type(codec).__name__} is no codec: it needs a number, encode and decode"
            )
        if not 1 <= codec.number <= 255:
            raise ValueError(f"the number of a codec is 1 to 255, not {codec.number}")
        codecs.append(codec)
    numbers = [codec.number for codec in codecs]
    for number in numbers:
        if numbers.count(number) > 1:
            raise ValueError(f"two codecs have the number {number}; each needs one of its own")
    return tuple(codecs)


def _is_codec(value: object) -> TypeIs[Codec]:
    if inspect.isclass(value) or not isinstance(value, Codec):
        return False
    number: object = value.number
    encodes = map(inspect.iscoroutinefunction, (value.encode, value.decode))
    return type(number) is int and all(encodes)


def _named(name: str) -> object:
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute:
        raise ValueError(f"{name!r} is not module:attribute")
    try:
        found: object = getattr(importlib.import_module(module_name), attribute)
        return found() if callable(found) else found
    except ConfigurationError as error:
        raise ValueError(str(error)) from None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{name!r} cannot be imported: {error}") from None
    except Exception as error:  # noqa: BLE001 -- of a user's function
        # The message is left out: it may quote a key.
        raise ValueError(f"{name!r} raised {type(error).__name__} as it was made") from None
