"""What a notification says: some shards, replies or acknowledgements, that there is post, or that
runners came or went.

Written by ``ring.sql``, as ``s:<group id>:<shard>,…`` or, for what may be older than it looks,
``o:<group id>:<shard>,…``, ``r:<request id>,…``, ``a:<request id>,…``
or ``t``, and by ``post.sql``, as ``v``; read here, strictly, since any login of the database may
notify on our channels.
"""

import re
from dataclasses import dataclass

from engine.core.ids import Snowflake

_SHARDS = re.compile(r"([so]):(-?\d{1,10}:\d{1,5}(?:,-?\d{1,10}:\d{1,5})*)")
_LAST_ID = (1 << 63) - 1
_REQUESTS = re.compile(r"([ra]):(\d{1,19}(?:,\d{1,19})*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bell:
    """One notification. ``shards`` are pairs of group id and number; ``old``: what is there to
    deliver comes from a transaction that may have been open for long."""

    shards: tuple[tuple[int, int], ...] = ()
    old: bool = False
    replies: tuple[Snowflake, ...] = ()
    acks: tuple[Snowflake, ...] = ()
    post: bool = False


ALL = Bell()
"""Runners came or went."""
POST = Bell(post=True)


def parse_bell(payload: object) -> Bell | None:
    """What the payload says, or None when nothing of ours wrote it."""
    if payload == "t":
        return ALL
    if payload == "v":
        return POST
    if not isinstance(payload, str) or not payload.isascii():
        return None
    shards = _SHARDS.fullmatch(payload)
    if shards is not None:
        pairs = (item.split(":") for item in shards[2].split(","))
        named = tuple((int(group_id), int(number)) for group_id, number in pairs)
        return Bell(shards=named, old=shards[1] == "o")
    requests = _REQUESTS.fullmatch(payload)
    if requests is None:
        return None
    ids = tuple(Snowflake(int(item)) for item in requests[2].split(","))
    if max(ids) > _LAST_ID:
        return None
    return Bell(replies=ids) if requests[1] == "r" else Bell(acks=ids)
