"""Dead letters: messages that no delivery could get an answer of. List them, and try them again.

Works on stored rows alone, so that it needs no entity's code. Used by the client and by the CLI.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from engine.admin import readable, readable_error
from engine.core.errors import NotFound
from engine.core.ids import Snowflake, snowflake_time
from engine.core.outcome import DeadLetterInfo
from engine.storage.entities import DeadFilter, DeadLetter
from engine.storage.protocol import Storage

if TYPE_CHECKING:
    from engine.node import Node

_PAGE: Final = 200


async def dead_letters(
    storage: Storage, filter: DeadFilter, *, limit: int | None = None
) -> AsyncIterator[DeadLetterInfo]:
    """Those that match, youngest first, read page by page."""
    left, wanted = limit, filter
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        page = await storage.dead_letters(wanted, limit=size)
        for letter in page:
            yield _info(letter)
        if len(page) < size:
            return
        wanted = replace(wanted, after=page[-1].request_id)
        left = None if left is None else left - len(page)


async def find(storage: Storage, request_id: Snowflake) -> DeadLetterInfo:
    """The dead letter, or ``NotFound``."""
    for letter in await storage.dead_letters(DeadFilter(request_id=request_id), limit=1):
        return _info(letter)
    raise NotFound(f"request {request_id} is no dead letter: 'outlast dead' lists those there are")


async def retry(node: "Node", requests: Sequence[Snowflake]) -> None:
    """Deliver dead letters again, and forget how often that failed. Of no effect on others."""
    node.ring_shards(await node.storage.revive(requests))


def _info(letter: DeadLetter) -> DeadLetterInfo:
    return DeadLetterInfo(
        request_id=letter.request_id,
        entity=letter.entity_type,
        id=letter.entity_id,
        method=letter.tag,
        payload=readable(letter.payload),
        error=readable_error(letter.error),
        sent_at=snowflake_time(letter.request_id),
        shard=letter.shard,
    )
