"""Whether PostgreSQL has a form for a request: asked before it joins a batch, which it would spoil.

From whoever queues requests, and from ``saving``.
"""

import json
from collections.abc import Mapping

from engine.core.errors import InvalidPayload
from engine.storage.protocol import SaveRequest

_LONGEST_KEY = 2000


def check_storable(request: SaveRequest) -> None:
    """``InvalidPayload`` when one of the request's texts cannot be stored, or its key is too long
    for an index."""
    envelope = request.envelope
    key = envelope.key or ""
    address, target = envelope.address, request.target or ""
    if not _storable(f"{address.entity_type} {address.entity_id} {envelope.tag} {key} {target}"):
        _refuse(
            {
                "entity type": address.entity_type,
                "id": address.entity_id,
                "tag": envelope.tag,
                "key": key,
                "target": target,
            }
        )
    if len(key) > _LONGEST_KEY or len(key.encode()) > _LONGEST_KEY:
        raise InvalidPayload(
            f"the key {key[:40]!r}… is longer than {_LONGEST_KEY} bytes: hash long keys"
        )
    if request.opening is not None:
        check_storable(request.opening)
    attributes = request.execution.attributes if request.execution else None
    if attributes is not None:
        check_attributes(attributes)


def _refuse(texts: Mapping[str, str]) -> None:
    for what, text in texts.items():
        if not _storable(text):
            raise InvalidPayload(f"the {what} {text!r} {_CHARACTERS}")


_CHARACTERS = "holds a character that cannot be stored: leave out NULs and lone surrogates"


def check_attributes(attributes: bytes) -> None:
    """``InvalidPayload`` when PostgreSQL has no form for them."""
    try:
        text = json.dumps(json.loads(attributes), ensure_ascii=False)
    except (ValueError, RecursionError) as error:
        raise InvalidPayload(f"the attributes are not JSON: {error}") from error
    if not _storable(text.replace("\\u0000", "\0")):
        raise InvalidPayload(f"one of the attributes {_CHARACTERS}")


def _storable(text: str) -> bool:
    if "\0" in text:
        return False
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            return False
    return True
