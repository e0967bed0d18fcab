"""Look at entities from outside, and put their state right, by the names they are stored under.

Works on stored rows and messages alone, without the entities' classes. Used by the CLI.
"""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

from engine.cluster.handling import REPLACE_STATE
from engine.cluster.served import served
from engine.core.envelope import EnvelopeRequest
from engine.core.errors import NotFound, NotRegistered, RequestFailed
from engine.core.ids import EntityAddress, EntityId, EntityType, ShardId, Snowflake, shard_of
from engine.core.reply import Defect, Exit, Failure, Success
from engine.node import Node
from engine.storage.entities import EntityFilter, EntityRow, StoredState
from engine.storage.protocol import Storage

_PAGE: Final = 200


async def entities(
    storage: Storage, filter: EntityFilter, *, limit: int | None = None
) -> AsyncIterator[EntityRow]:
    """Entities that have a state or waiting messages, by type and id, read page by page."""
    left, wanted = limit, filter
    while left is None or left > 0:
        size = _PAGE if left is None else min(_PAGE, left)
        page = await storage.entities(wanted, limit=size)
        for row in page:
            yield row
        if len(page) < size:
            return
        wanted = replace(wanted, after=(page[-1].entity_type, page[-1].entity_id))
        left = None if left is None else left - len(page)


async def state_of(storage: Storage, entity_type: str, id: str) -> StoredState:
    """The state that is stored of an entity, or ``NotFound``."""
    found = (await storage.states([(entity_type, id)])).get((entity_type, id))
    if found is None:
        raise NotFound(
            f"{entity_type}/{id} has no stored state;"
            f" 'outlast entities {entity_type}' lists the entities there are"
        )
    return found


async def ask_to_replace_state(
    node: Node, entity_type: str, id: str, *, version: int, value: bytes
) -> Snowflake:
    """Ask the entity's owner to replace its state, if it is at ``version`` (0: never saved) by
    then. Returns once that is stored; ``replaced`` reads the answer to it."""
    shard = await _shard(node, entity_type, id)
    envelope = EnvelopeRequest(
        request_id=await node.outbox.next_id(),
        address=EntityAddress(shard, EntityType(entity_type), EntityId(id)),
        tag=REPLACE_STATE,
        payload=b'{"version":%d,"value":%b}' % (version, value),
    )
    return (await node.sender.send(envelope)).request_id


def replaced(entity_type: str, id: str, exit: Exit) -> int:
    """The new version; ``RequestFailed`` says why the state is what it was."""
    match exit:
        case Success(value):
            return int(json.loads(value))
        case Failure(error) | Defect(error):
            raise RequestFailed(
                f"the state of {entity_type}/{id} was not replaced: {error.message}", error
            )
        case ended:
            raise NotFound(f"the edit of {entity_type}/{id} was ended: {ended.reason}")


async def _shard(node: Node, entity_type: str, id: str) -> ShardId:
    """Where the entity lives: by what is stored of it, else by who serves its type."""
    rows = await node.storage.entities(EntityFilter(entity_type=entity_type, entity_id=id), limit=1)
    if rows:
        return rows[0].shard
    found = served(await node.storage.runners()).get(entity_type)
    if found is None or found.kind != "entity":
        raise NotRegistered(
            f"nothing is stored of {entity_type}/{id}, and no live runner serves an entity"
            f" {entity_type!r}; check its name, or start its runner with 'outlast run APP'"
        )
    await node.know(found.group)
    return shard_of(found.group, node.storage.shards_in(found.group), entity_type, id)
