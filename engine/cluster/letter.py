"""Volatile messages as bytes: what ``cluster.volatile`` and ``cluster.reception`` write each other.

They travel as the bodies of posts. They are read strictly, since whoever can write the table can
put anything there: what is not exactly as written here is ``Malformed``.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, cast
from uuid import UUID

from engine.core.envelope import EnvelopeRequest, Uninterruptible
from engine.core.errors import ConfigurationError, InvalidPayload
from engine.core.ids import EntityAddress, EntityId, EntityType, Snowflake, shard_of
from engine.core.names import definition_name, entity_id
from engine.core.reply import ReplyKind, decode_exit
from engine.core.trace import checked_headers, checked_trace
from engine.storage.protocol import Received

_VERSION = 1
_REQUEST = struct.Struct(">BHI")
_REPLY = struct.Struct(">BBHI")
_ORDER = struct.Struct(">B16sI")
_FIELDS = frozenset({"from", "reply", "type", "id", "tag", "headers", "trace", "uninterruptible"})


class Malformed(Exception):
    """Nothing of ours wrote this."""


class Refusal(IntEnum):
    """Why an owner has not begun with a request."""

    NOT_HERE = 100
    """Its shard is not, or no longer, there: it may be sent to the next owner."""
    FULL = 101


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request. ``sender`` is the channel of its replies; ``attempt`` counts how often it was
    sent, each time after an owner had refused it; ``awaited``: somebody wants the replies."""

    envelope: EnvelopeRequest
    sender: UUID
    attempt: int
    awaited: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """A reply to the ``attempt`` of that number, or why there will be none. ``payload`` of a
    refusal says more in words."""

    outcome: ReplyKind | Refusal
    attempt: int
    sequence: int
    payload: bytes


def request_parts(envelope: EnvelopeRequest, *, sender: UUID, awaited: bool) -> bytes:
    """All of a request but the attempt: what ``request_body`` needs."""
    fields = {
        "from": sender.hex,
        "reply": awaited,
        "type": envelope.address.entity_type,
        "id": envelope.address.entity_id,
        "tag": envelope.tag,
        "headers": dict(envelope.headers),
        "trace": envelope.trace,
        "uninterruptible": envelope.uninterruptible.value,
    }
    header = json.dumps(fields).encode()
    return len(header).to_bytes(4) + header + envelope.payload


def request_body(parts: bytes, attempt: int) -> bytes:
    return bytes((_VERSION,)) + attempt.to_bytes(2) + parts


def read_request(received: Received, shards_in: Callable[[str], int]) -> Asked:
    """``Malformed`` also when the entity does not live on the shard it was sent to."""
    try:
        version, attempt, length = _REQUEST.unpack_from(received.body)
        header = received.body[_REQUEST.size : _REQUEST.size + length]
        tree: object = json.loads(header)
    except (struct.error, ValueError, RecursionError) as error:
        raise Malformed(f"no request: {error}") from error
    if version != _VERSION or len(header) != length or not isinstance(tree, dict):
        raise Malformed(f"no request of version {_VERSION}")
    fields = cast("dict[str, Any]", tree)
    if fields.keys() != _FIELDS or received.shard is None:
        raise Malformed("a request with other fields, or to no shard")
    try:
        return Asked(
            envelope=_envelope(
                received, fields, received.body[_REQUEST.size + length :], shards_in
            ),
            sender=UUID(hex=_typed(fields["from"], str)),
            attempt=attempt,
            awaited=_typed(fields["reply"], bool),
        )
    except (ConfigurationError, InvalidPayload, ValueError) as error:
        raise Malformed(f"a request that cannot be: {error}") from error


def _envelope(
    received: Received,
    fields: Mapping[str, Any],
    payload: bytes,
    shards_in: Callable[[str], int],
) -> EnvelopeRequest:
    shard = received.shard
    assert shard is not None
    name = definition_name(fields["type"], what="the entity type")
    id = entity_id(fields["id"], what="the entity's id")
    if id != fields["id"] or shard_of(shard.group, shards_in(shard.group), name, id) != shard:
        raise Malformed("a request to another shard than its entity's")
    return EnvelopeRequest(
        request_id=received.request_id,
        address=EntityAddress(shard, EntityType(name), EntityId(id)),
        tag=_typed(fields["tag"], str),
        payload=payload,
        headers=checked_headers(fields["headers"]),
        trace=checked_trace(fields["trace"]),
        persisted=False,
        uninterruptible=Uninterruptible(_typed(fields["uninterruptible"], int)),
    )


def reply_body(
    outcome: ReplyKind | Refusal, payload: bytes, *, attempt: int, sequence: int = 0
) -> bytes:
    return _REPLY.pack(_VERSION, outcome.value, attempt, sequence) + payload


def read_reply(received: Received) -> Answered:
    try:
        version, number, attempt, sequence = _REPLY.unpack_from(received.body)
        outcome = ReplyKind(number) if number < Refusal.NOT_HERE else Refusal(number)
        payload = received.body[_REPLY.size :]
        if isinstance(outcome, ReplyKind) and outcome is not ReplyKind.CHUNK:
            decode_exit(outcome, payload)
    except (struct.error, ValueError, InvalidPayload) as error:
        raise Malformed(f"no reply: {error}") from error
    if version != _VERSION:
        raise Malformed(f"no reply of version {_VERSION}")
    return Answered(outcome=outcome, attempt=attempt, sequence=sequence, payload=payload)


def order_body(sender: UUID, sequence: int = 0) -> bytes:
    """An acknowledgement of chunks up to and with ``sequence``, an interrupt or a sign of life."""
    return _ORDER.pack(_VERSION, sender.bytes, sequence)


def read_order(received: Received) -> tuple[UUID, int]:
    """Who sent it, and the sequence."""
    try:
        version, sender, sequence = _ORDER.unpack(received.body)
    except struct.error as error:
        raise Malformed(f"no order: {error}") from error
    if version != _VERSION:
        raise Malformed(f"no order of version {_VERSION}")
    return UUID(bytes=sender), sequence


def checked(envelope: EnvelopeRequest, shards_in: Callable[[str], int]) -> EnvelopeRequest:
    """A request that may be sent as a volatile one; ``ConfigurationError`` says why it may not."""
    what = f"{envelope.address} {envelope.tag} is volatile (persisted=False)"
    if envelope.deliver_at is not None:
        raise ConfigurationError(
            f"{what}: it cannot be delivered at a later time, since nothing keeps it until then;"
            " leave at= out, or make it persisted"
        )
    if envelope.key is not None:
        raise ConfigurationError(
            f"{what}: it cannot be deduplicated by a key, since nothing remembers it; leave key="
            " out, or make it persisted"
        )
    if envelope.reply_to is not None:
        raise ConfigurationError(
            f"{what}: a workflow needs a stored reply; call it in an activity, or make it persisted"
        )
    address = envelope.address
    group = address.shard.group
    definition_name(address.entity_type, what="an entity type")
    if entity_id(address.entity_id, what="an entity's id") != address.entity_id:
        raise ConfigurationError(f"the id of {address} is too long; use up to 255 characters")
    if address.shard != shard_of(group, shards_in(group), address.entity_type, address.entity_id):
        raise ConfigurationError(
            f"{address} does not live on shard {address.shard}; ask get_shard_id() for its shard"
        )
    if len(envelope.payload) > LARGEST:
        raise InvalidPayload(too_large(envelope.payload))
    if not 0 <= envelope.request_id < _IDS:
        raise ConfigurationError(
            f"{envelope.request_id} is no request id; take one of snowflake().next()"
        )
    return envelope


def too_large(payload: bytes) -> str:
    return (
        f"a volatile message carries up to {LARGEST >> 20} MiB, not {len(payload)} bytes; send a"
        " reference to what is that large"
    )


LARGEST = 1 << 26
_IDS = 1 << 63


def _typed(value: object, type_: type[Any]) -> Any:
    if type(value) is not type_:
        raise Malformed(f"{value!r} is not a {type_.__name__}")
    return value


def no_request(request_id: Snowflake) -> ConfigurationError:
    return ConfigurationError(
        f"request {request_id} is being handled already; give each request an id of its own"
    )
