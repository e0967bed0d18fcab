"""W10: how fast clients start workflows, without a runner: alone, many at a time, and in
transactions of the user."""

import asyncio
from contextlib import AsyncExitStack
from time import perf_counter

from bench.driver import repeated
from bench.meter import Meter
from bench.place import Options, Place, settings_of
from bench.results import Results
from bench.server import Connection, Server
from bench.workflows import Steps
from engine import Client

ALONE = 500
MANY, AT_ONCE = 20_000, 1000
IN_TRANSACTIONS, CONNECTIONS = 4000, 16
ORDERS = "create table orders (id text primary key)"


async def starts(server: Server, results: Results, options: Options) -> None:
    async with server.database() as database, Client(settings_of(database)) as client:
        place = Place(
            client=client,
            database=database,
            results=results,
            options=options,
            variant="client alone",
        )
        for _ in range(100):
            await client.start(Steps, 1, key=place.keys())
        await _alone(place)
        await _many(place)
        async with AsyncExitStack() as stack:
            connections = [
                await stack.enter_async_context(database.connected()) for _ in range(CONNECTIONS)
            ]
            await connections[0].execute(ORDERS)
            await _in_transactions(place, connections[:1], options.sized(ALONE))
            await _in_transactions(place, connections, options.sized(IN_TRANSACTIONS))


async def _alone(place: Place) -> None:
    taken: list[float] = []
    count = place.options.sized(ALONE)
    async with place.metered() as meter:
        for _ in range(count):
            began = perf_counter()
            await place.client.start(Steps, 1, key=place.keys())
            taken.append(perf_counter() - began)
    place.results.add_durations(
        "W10", place.variant, "start alone", taken, **meter.per(count, "start")
    )


async def _many(place: Place) -> None:
    count = place.options.sized(MANY)
    async with place.metered() as meter, asyncio.timeout(300):
        await repeated(
            lambda: place.client.start(Steps, 1, key=place.keys()), count, at_once=AT_ONCE
        )
    more = meter.per(count, "start")
    place.add("W10", f"{AT_ONCE} at a time", count / meter.seconds, "starts/s", n=count, **more)


async def _in_transactions(place: Place, connections: list[Connection], count: int) -> None:
    """Each with a row of the user's, over so many connections at a time."""
    left = iter(range(count))

    async def some(connection: Connection) -> None:
        for _ in left:
            async with connection.transaction():
                key = place.keys()
                await connection.execute("insert into orders values ($1)", key)
                await place.client.start(Steps, 1, key=key, connection=connection)

    async with Meter(place.database) as meter, asyncio.timeout(300), asyncio.TaskGroup() as group:
        for connection in connections:
            group.create_task(some(connection))
    what = f"in transactions, {len(connections)} at a time"
    more = meter.per(count, "start")
    place.add("W10", what, count / meter.seconds, "starts/s", n=count, **more)
