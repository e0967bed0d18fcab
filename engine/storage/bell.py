"""What a notification says: some shards, some replies, or that runners came or went.

Written by ``ring.sql``, as ``s:<group id>:<shard>,…``, ``r:<request id>,…`` or ``t``; read here,
strictly, since any login of the database may notify on our channels.
"""

import re
from dataclasses import dataclass

from engine.core.ids import Snowflake

_SHARDS = re.compile(r"s:(-?\d{1,10}:\d{1,5}(?:,-?\d{1,10}:\d{1,5})*)")
_REPLIES = re.compile(r"r:(\d{1,19}(?:,\d{1,19})*)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Bell:
    """One notification. ``shards`` are pairs of group id and number."""

    shards: tuple[tuple[int, int], ...] = ()
    replies: tuple[Snowflake, ...] = ()


ALL = Bell()
"""Runners came or went."""


def parse_bell(payload: object) -> Bell | None:
    """What the payload says, or None when nothing of ours wrote it."""
    if payload == "t":
        return ALL
    if not isinstance(payload, str) or not payload.isascii():
        return None
    shards = _SHARDS.fullmatch(payload)
    if shards is not None:
        pairs = (item.split(":") for item in shards[1].split(","))
        return Bell(shards=tuple((int(group_id), int(number)) for group_id, number in pairs))
    replies = _REPLIES.fullmatch(payload)
    if replies is not None:
        return Bell(replies=tuple(Snowflake(int(item)) for item in replies[1].split(",")))
    return None
