"""Codecs: what wraps encoded values on their way into the database, and the frame they rest in.

Named by ``Settings.codec``; applied by ``storage.sealed`` and by nothing above it. A value that was
encoded begins with four bytes that no JSON begins with, and no value may; the codec's number is
next, and then what the codec has made. The columns ``codec`` are computed from that.
"""

import logging
from collections.abc import Sequence
from typing import Final, Protocol, runtime_checkable

from engine.core.errors import StorageUnavailable

log: logging.Logger = logging.getLogger(__name__)

ENCRYPTED: Final = 1
"""The number of ``engine.encryption.AesGcm``."""
MARK: Final = b"\0out"
_FRAME: Final = len(MARK) + 1


@runtime_checkable
class Codec(Protocol):
    """Wraps each user value that is stored: to encrypt it, compress it, or keep it elsewhere.

    ``number``, 1 to 255, is stored with the value and never changes its meaning; below 100 they are
    ours. ``place`` says where the value rests (which execution and position, which request, which
    state of which entity) and is the same when it is read: authenticate it, so that nobody can put
    one value in another's place.

    Both are awaited between a lane's statements, one value after the other: they must neither hang
    nor be slow. Any error of ``decode`` means that the value cannot be read here, now.
    """

    @property
    def number(self) -> int: ...
    async def encode(self, payload: bytes, place: bytes) -> bytes:
        """What is to be stored. On an error nothing is, and it is tried again or told."""
        ...

    async def decode(self, payload: bytes, place: bytes) -> bytes:
        """The value, of what ``encode`` has made for the same place."""
        ...


class Codecs:
    """The codecs of a process: the first one writes, each reads what has its number.

    Without any, values are stored as they are, which is how all of them are read that no codec has
    encoded.
    """

    def __init__(self, codecs: Sequence[Codec] = ()) -> None:
        self._writer = codecs[0] if codecs else None
        self._readers = {codec.number: codec for codec in codecs}

    def __bool__(self) -> bool:
        return self._writer is not None

    async def seal(self, payload: bytes, *place: object) -> bytes:
        """The value as it is stored; ``StorageUnavailable`` when the codec cannot encode now."""
        codec = self._writer
        if codec is None:
            return payload
        try:
            body = await codec.encode(payload, _place(place))
        except Exception as error:
            raise StorageUnavailable(
                f"codec {codec.number} could not encode a value ({type(error).__name__});"
                " nothing of it was stored"
            ) from error
        return MARK + bytes((codec.number,)) + body

    async def open(self, stored: bytes, *place: object) -> bytes:
        """The value. What cannot be read is left as it is stored: see ``unreadable``."""
        if not is_sealed(stored):
            return stored
        codec = self._readers.get(stored[len(MARK)])
        if codec is None:
            return stored
        try:
            return await codec.decode(stored[_FRAME:], _place(place))
        except Exception as error:  # noqa: BLE001 -- whatever it is, the value waits
            # The message is left out: it may quote the value.
            log.warning(
                "a stored value cannot be decoded",
                extra={"codec": codec.number, "place": place, "error": type(error).__name__},
            )
            return stored


def is_sealed(payload: bytes) -> bool:
    """Whether this is not a value but what a codec has made of one."""
    return payload.startswith(MARK) and len(payload) >= _FRAME


def unreadable(payload: bytes) -> str | None:
    """What to say of a value that could not be decoded; None when it is a value."""
    if not is_sealed(payload):
        return None
    number, what = payload[len(MARK)], ""
    if number == ENCRYPTED and len(payload) > _FRAME:
        end = _FRAME + 1 + payload[_FRAME]
        what = f" with key {payload[_FRAME + 1 : end].decode('ascii', errors='replace')!r}"
    return (
        f"encoded by codec {number}{what}, and this process cannot decode it: name the codec in"
        " OUTLAST_CODEC and give it the key"
    )


def _place(parts: Sequence[object]) -> bytes:
    """Unambiguous: no text in PostgreSQL holds a zero."""
    return "\0".join(map(str, parts)).encode(errors="surrogatepass")
