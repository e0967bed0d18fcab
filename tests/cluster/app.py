"""The process of the behaviour suite: a runner that also obeys commands, or a client alone.

It speaks as ``tests.chaos.app`` does: ``app runner`` and ``app client``, settings from
``OUTLAST_…`` variables, JSON lines in and out.
"""

import asyncio
import logging
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from engine import (
    Client,
    Defect,
    EntityAddress,
    EntityId,
    EntityRegistered,
    EntityType,
    EnvelopeRequest,
    Exit,
    Failure,
    Interrupt,
    ReplyWithExit,
    Runner,
    Settings,
    ShardId,
    ShardingRegistrationEvent,
    SingletonRegistered,
    Snowflake,
    Success,
)
from tests.chaos.app import Statements, answer_commands, say, tell
from tests.cluster.cast import ENTITIES, SINGLETONS, Stage
from tests.cluster.characters import CHARACTERS, latecomer
from tests.cluster.hostility import VARIABLE, harden
from tests.cluster.newcomers import made

SERVED = [*ENTITIES, *CHARACTERS]
BY_NAME = {entity.name: entity for entity in SERVED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What commands work with: a client, and the runner of the process if it is one."""

    client: Client
    own: Runner | None = None
    stage: Stage | None = None
    registered: set[str] = field(default_factory=set[str])
    events: list[list[str]] = field(default_factory=list[list[str]])

    @property
    def runner(self) -> Runner:
        assert self.own is not None, "this process is a client only"
        return self.own


async def call(place: Place, command: dict[str, Any]) -> object:
    """Call a handler and give its answer; with ``tell`` only store the message."""
    at = command.get("at")
    handle = place.client.entity(
        BY_NAME[command["entity"]],
        command["entity_id"],
        at=None if at is None else datetime.fromisoformat(at),
        key=command.get("key"),
    )
    method = getattr(handle, command["method"])
    if command.get("tell"):
        return await place.client.tell(method, *command["args"])
    return await method(*command["args"])


async def calls(place: Place, command: dict[str, Any]) -> object:
    """The same call so many times, one after the other; the last answer."""
    return [await call(place, command) for _ in range(command["times"])][-1]


async def send(place: Place, command: dict[str, Any]) -> object:
    """Send an envelope as it is and give its exit: the kind, and the value or the error."""
    sharding = place.runner.sharding
    entity, id = EntityType(command["type"]), EntityId(command["entity_id"])
    receiver = await sharding.send(
        EnvelopeRequest(
            request_id=sharding.snowflake().next(),
            address=EntityAddress(sharding.get_shard_id(entity, id), entity, id),
            payload=command.pop("payload").encode("latin-1"),
            **{name: command[name] for name in ENVELOPE & command.keys()},
        )
    )
    return told(await receiver)


def told(exit: Exit) -> object:
    match exit:
        case Success(value):
            return ["Success", value.decode()]
        case Failure(error) | Defect(error) as exit:
            return [exit.__class__.__name__, f"{error.type}: {error.message}"]
        case ended:
            return [ended.__class__.__name__, ended.reason]


async def send_by_name(place: Place, command: dict[str, Any]) -> object:
    """Send with a client that does not know the class; how it ends."""
    client = place.runner.sharding.make_client(EntityType(command["type"]))
    client = client.options(**command.get("options", {}))
    return told(await (await client.send(command["id_of"], command["tag"], command["arguments"])))


async def replies_for(place: Place, command: dict[str, Any]) -> object:
    """The exits that are stored for a request, which is no stream."""
    replies = await place.runner.sharding.replies_for(Snowflake(command["request_id"]))
    return [told(each.exit) for each in replies if isinstance(each, ReplyWithExit)]


async def exit_of(place: Place, command: dict[str, Any]) -> object:
    """How a request has ended, once it has."""
    return told(await (await place.runner.sharding.await_reply(Snowflake(command["request_id"]))))


async def interrupt(place: Place, command: dict[str, Any]) -> object:
    sharding = place.runner.sharding
    entity, id = EntityType(command["type"]), EntityId(command["entity_id"])
    address = EntityAddress(sharding.get_shard_id(entity, id), entity, id)
    request_id = Snowflake(command["request_id"])
    return await sharding.interrupt(Interrupt(request_id=request_id, address=address))


async def serve(place: Place, command: dict[str, Any]) -> None:
    """Handle the messages of one more type from now on."""
    assert place.stage is not None
    await place.runner.sharding.register_entity(latecomer(command["type"])(place.stage))


ENVELOPE = {"tag", "headers", "trace", "key", "persisted"}


async def shards(place: Place, _: dict[str, Any]) -> object:
    """The shards it owns, with the epochs it owns them under."""
    return [[id.group, id.number, epoch] for id, epoch in place.runner.epochs.items()]


async def shard_of(place: Place, command: dict[str, Any]) -> object:
    entity, id = EntityType(command["type"]), EntityId(command["entity_id"])
    shard = place.runner.sharding.get_shard_id(entity, id)
    return [shard.group, shard.number]


async def has_shard(place: Place, command: dict[str, Any]) -> object:
    return place.runner.sharding.has_shard_id(ShardId(command["group"], command["number"]))


async def active(place: Place, _: dict[str, Any]) -> object:
    return place.runner.sharding.active_entity_count()


async def poll_storage(place: Place, _: dict[str, Any]) -> object:
    return await place.runner.sharding.poll_storage()


async def snowflakes(place: Place, command: dict[str, Any]) -> object:
    generator = place.runner.sharding.snowflake()
    return [generator.next() for _ in range(command["count"])]


async def register(place: Place, command: dict[str, Any]) -> None:
    """Serve a newcomer, unless it is served here already."""
    assert place.stage is not None
    for each in made(place.stage, **command["newcomer"]):
        if each.name not in place.registered:
            place.registered.add(each.name)
            place.runner.register(each)


async def registrations(place: Place, _: dict[str, Any]) -> object:
    """What it was told of registrations since it began."""
    return place.events


COMMANDS: dict[str, Callable[[Place, dict[str, Any]], Awaitable[object]]] = {
    "call": call,
    "calls": calls,
    "send": send,
    "send_by_name": send_by_name,
    "replies_for": replies_for,
    "exit_of": exit_of,
    "interrupt": interrupt,
    "serve": serve,
    "shards": shards,
    "shard_of": shard_of,
    "has_shard": has_shard,
    "active": active,
    "poll_storage": poll_storage,
    "snowflakes": snowflakes,
    "register": register,
    "registrations": registrations,
}


async def run() -> None:
    statements = Statements()
    stage = Stage()
    runner = Runner(Settings())
    place = Place(client=runner.client, own=runner, stage=stage)
    events = runner.sharding.registration_events()
    runner.register(*(each(stage) for each in (*SERVED, *SINGLETONS)))
    stage.client = runner.client
    async with asyncio.TaskGroup() as group:
        beside = [
            group.create_task(tell(runner, statements)),
            group.create_task(hear(place, events)),
            group.create_task(obey(place)),
        ]
        await runner.run()
        for task in beside:
            task.cancel()


async def hear(place: Place, events: AsyncIterator[ShardingRegistrationEvent]) -> None:
    async for event in events:
        match event:
            case EntityRegistered(name, group):
                place.events.append(["entity", name, group])
            case SingletonRegistered(name, group):
                place.events.append(["singleton", name, group])


async def obey(place: Place) -> None:
    await answer_commands(lambda command: COMMANDS[command["do"]](place, command))


async def serve_client() -> None:
    async with Client(Settings()) as client:
        say(ready=True)
        await obey(Place(client=client))


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    harden(SERVED, os.environ[VARIABLE])
    asyncio.run(run() if sys.argv[1] == "runner" else serve_client())
