"""AES-GCM encryption of stored values, under the extra ``crypto``.

``Settings(codec=AesGcm({...}))``, or ``OUTLAST_CODEC=engine.encryption:aes_gcm`` with the keys in
``OUTLAST_ENCRYPTION_KEYS``.
"""

import base64
import binascii
import hmac
import os
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from engine.core.errors import ConfigurationError
from engine.core.seal import ENCRYPTED

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

KEYS: Final = "OUTLAST_ENCRYPTION_KEYS"
_KEY = 32
_SALT = 16
_NONCE = 12
_RENEW = 1 << 24
_KEPT = 1024
_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


class AesGcm:
    """A ``Codec`` that encrypts with AES-256-GCM. ``keys`` are 32 random bytes each, by an id that
    is stored in the clear: the first one encrypts, all of them decrypt.

    To rotate: give the new key to every process behind the old one, then put it first, and take the
    old one out when nothing that was encrypted with it is left. What is encrypted is bound to its
    place, so that a value that was put elsewhere in the database cannot be decrypted.

    A process does not encrypt with the key itself but with one that it derives from that and a
    random salt, which is stored with each value, and renews: so random nonces do not run out.

    Needs ``pip install 'outlast[crypto]'``.
    """

    __slots__ = ("_ciphers", "_keys", "_left", "_salt", "_writes")

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        if not keys:
            raise ConfigurationError("AesGcm needs a key: AesGcm({'2026': <32 random bytes>})")
        for id, key in keys.items():
            if not _ID.fullmatch(id):
                raise ConfigurationError(
                    "the id of an encryption key has 1 to 64 letters, digits, dots, dashes and"
                    " underscores"
                )
            if len(key) != _KEY:
                raise ConfigurationError(
                    f"the encryption key {id!r} has {len(key)} bytes, not {_KEY}: make one with"
                    " 'openssl rand -base64 32'"
                )
        _library()
        self._keys = {id.encode(): bytes(key) for id, key in keys.items()}
        self._writes = next(iter(self._keys))
        self._salt = b""
        self._left = 0
        self._ciphers: OrderedDict[tuple[bytes, bytes], AESGCM] = OrderedDict()

    @property
    def number(self) -> int:
        return ENCRYPTED

    async def encode(self, payload: bytes, place: bytes) -> bytes:
        """Key id, salt, nonce, and what is encrypted with its tag."""
        if self._left == 0:
            self._salt, self._left = os.urandom(_SALT), _RENEW
        self._left -= 1
        head = bytes((len(self._writes),)) + self._writes + self._salt
        # INVARIANT nonce-once: it is random, not counted, since a fork would count the same twice.
        nonce = os.urandom(_NONCE)
        cipher = self._cipher(self._writes, self._salt)
        return head + nonce + cipher.encrypt(nonce, payload, head + place)

    async def decode(self, payload: bytes, place: bytes) -> bytes:
        """Raises for a key that is not here, and for what was changed or put elsewhere."""
        behind = 1 + payload[0]
        end = behind + _SALT
        id, salt, nonce = payload[1:behind], payload[behind:end], payload[end : end + _NONCE]
        cipher = self._cipher(id, salt)
        return cipher.decrypt(nonce, payload[end + _NONCE :], payload[:end] + place)

    def _cipher(self, id: bytes, salt: bytes) -> "AESGCM":
        cipher = self._ciphers.get((id, salt))
        if cipher is None:
            derived = hmac.digest(self._keys[id], b"outlast aes-gcm 1" + salt, "sha256")
            cipher = self._ciphers[id, salt] = _library()(derived)
            if len(self._ciphers) > _KEPT:
                self._ciphers.popitem(last=False)
        return cipher

    def __repr__(self) -> str:
        ids = ", ".join(id.decode() for id in self._keys)
        return f"<AesGcm with keys {ids}>"


def aes_gcm() -> AesGcm:
    """The codec with the keys of ``OUTLAST_ENCRYPTION_KEYS``: ``id=base64,id=base64``, of which
    the first encrypts."""
    keys: dict[str, bytes] = {}
    for part in os.environ.get(KEYS, "").split(","):
        if not part.strip():
            continue
        id, _, text = part.strip().partition("=")
        try:
            if not text:  # a key without an id would be taken for one, and shown
                raise ValueError
            key = base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            raise ConfigurationError(
                f"{KEYS}: a part is not ID=BASE64; make a key with 'openssl rand -base64 32'"
            ) from None
        if id in keys:
            raise ConfigurationError(f"{KEYS}: two keys have one id")
        keys[id] = key
    if not keys:
        raise ConfigurationError(
            f"{KEYS} holds no key: set it to ID=BASE64, of 'openssl rand -base64 32'"
        )
    return AesGcm(keys)


def _library() -> "type[AESGCM]":
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise ConfigurationError(
            "encryption needs the package cryptography: pip install 'outlast[crypto]'"
        ) from None
    return AESGCM
