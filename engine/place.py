"""Where a message to an entity or an item of a queue stands, in words: what it waits for, and who
has that.

Used by ``admin`` for the calls of an execution, and by ``outlast why``.
"""

from engine.cluster.limits import QueueSettings
from engine.core.ids import RunnerId, Snowflake
from engine.storage.places import Holder, Place
from engine.storage.protocol import RunnerRow, Storage
from engine.storage.queues import QueueCounts, queue_named


async def standing(storage: Storage, request_id: Snowflake) -> str | None:
    """A sentence about a request that has not ended; None when it has, is unknown or is an
    execution. Times in it are ISO 8601."""
    place = await storage.place(request_id)
    if place is None:
        return None
    runners = {row.id: row for row in await storage.runners()}
    names = {id: f"runner {row.host}:{row.pid}" for id, row in runners.items()}
    name = queue_named(place.address.entity_type)
    if name is None:
        owner = None if place.runner is None else runners.get(place.runner)
        return _message(place, names, unserved=owner is not None and not _serves(owner, place))
    (counts,) = await storage.queues([name]) or (None,)
    return _item(place, name, counts, names)


def _serves(owner: RunnerRow, place: Place) -> bool:
    """As far as is known. What a cron asks of itself goes to a type named after it."""
    name = place.address.entity_type.rpartition(":")[2]
    return not owner.types or name in owner.types


def _message(place: Place, names: dict[RunnerId, str], *, unserved: bool) -> str:
    entity = f"{place.address.entity_type}/{place.address.entity_id}"
    it = f"message {place.tag} to {entity}"
    if place.due_at is not None:
        return f"{it} is to be delivered at {place.due_at.isoformat(timespec='seconds')}"
    if place.runner is None:
        return f"{it} waits: nobody owns shard {place.address.shard}"
    if unserved:
        return (
            f"{it} waits: {_name(place.runner, names)} owns shard {place.address.shard} and does"
            f" not serve {place.address.entity_type}: let all runners of group"
            f" {place.address.shard.group} register it"
        )
    if place.holder is None:
        return f"{it} is the first in the mailbox, on {_name(place.runner, names)}"
    return (
        f"{it} waits for that key, behind {_number(place.ahead, 'message')}:"
        f" {_held(place.holder, names)} came first"
    )


def _item(place: Place, queue: str, counts: QueueCounts | None, names: dict[RunnerId, str]) -> str:
    it = f"item {place.address.entity_id} of queue {queue}"
    if place.admitted:
        return f"{it} runs on {_name(place.runner, names)}"
    if place.due_at is not None:
        return f"{it} is delayed until {place.due_at.isoformat(timespec='seconds')}"
    if counts is None or place.key is None:
        return f"{it} has not been taken in yet: {_name(place.runner, names)} owns its shard"
    behind = f", behind {_number(place.ahead, 'other')} of its key," if place.ahead else ""
    settings = QueueSettings.decode(counts.row.settings, paused=counts.row.paused)
    limits = settings.limits
    if settings.paused:
        because = f" ({settings.reason})" if settings.reason else ""
        wait = f"until the queue is resumed{because}: 'outlast queues resume {queue}'"
    elif place.holder is not None and 0 < limits.per_key <= place.running:
        wait = (
            f"for key {place.key!r}, of which {limits.per_key} may run at once:"
            f" {_held(place.holder, names)} has it"
        )
    elif 0 < limits.concurrency <= counts.running:
        wait = f"for a place: {_number(limits.concurrency, 'item')} may run at once, and do"
    else:
        wait = f"for its turn ('outlast queues show {queue}')"
    return f"{it} waits{behind} {wait}"


def _held(holder: Holder, names: dict[RunnerId, str]) -> str:
    where = _name(holder.runner, names)
    return f"{holder.id} ({holder.tag}, request {holder.request_id}) on {where}"


def _name(runner: RunnerId | None, names: dict[RunnerId, str]) -> str:
    return "nobody" if runner is None else names.get(runner, f"runner {runner}")


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
