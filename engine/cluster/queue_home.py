"""Where a queue is at home: in the one shard group that all of its items are in.

Asked by ``runner`` before it serves a queue, and by ``cluster.queue_host`` before it admits.
"""

from engine.cluster.queue import QueueDefinition
from engine.cluster.served import described
from engine.core.errors import ConfigurationError
from engine.storage.protocol import Storage


async def refuse_to_strand(storage: Storage, definition: QueueDefinition) -> None:
    """``ConfigurationError`` when the queue has items in another group than its class says: nobody
    would go on with them."""
    name, group = definition.name, definition.group
    (counts,) = await storage.queues([name]) or (None,)
    if counts is None or counts.row.shard.group == group:
        return
    former = counts.row.shard.group
    if items := counts.waiting + counts.delayed + counts.running:
        raise ConfigurationError(
            f"queue {name} has {items} item{'' if items == 1 else 's'} in shard group {former} and"
            f" cannot move to {group}: serve it with shard_group = {former!r} until 'outlast queues"
            f" show {name}' counts none, or give the queue of group {group} another name"
        )


async def refuse_two_homes(storage: Storage, definition: QueueDefinition) -> None:
    """As ``refuse_to_strand``, and also when a live runner serves it in the group that it was in.

    INVARIANT one-home: who admits items there has gone before those that it has left are counted.
    """
    name, group = definition.name, definition.group
    rows = await storage.queue_rows([name])
    former = rows[0].shard.group if rows else group
    if former == group:
        return
    for row in await storage.runners():
        if row.died_at is None and row.types.get(name) == described("queue", former):
            raise ConfigurationError(
                f"queue {name} moves to shard group {group} once runner {row.host}:{row.pid} has"
                f" gone, which serves it in group {former}: finish the deployment"
            )
    await refuse_to_strand(storage, definition)
