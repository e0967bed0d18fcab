"""A codec of one's own: it compresses what another one then encrypts.

``OUTLAST_CODEC=examples.codecs:compressed``, with a key in ``OUTLAST_ENCRYPTION_KEYS``.
"""

import zlib

from engine import Codec
from engine.encryption import aes_gcm


class Compressed:
    number = 100

    def __init__(self, then: Codec) -> None:
        self.then = then

    async def encode(self, payload: bytes, place: bytes) -> bytes:
        return await self.then.encode(zlib.compress(payload), place)

    async def decode(self, payload: bytes, place: bytes) -> bytes:
        return zlib.decompress(await self.then.decode(payload, place))


def compressed() -> Compressed:
    return Compressed(aes_gcm())
