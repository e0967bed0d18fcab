"""What is stored under one key at once: G2, G3."""

import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial

import asyncpg

from engine import AlreadyStarted, Client, EngineError, Execution, PayloadConflict, Status
from engine.core.ids import Snowflake
from tests.gates import ServerGates, Side, every_order
from tests.races.starts import (
    FAIL,
    NAMES,
    RUN,
    Double,
    OnConflict,
    Told,
    starting,
    stored,
    whole,
)
from tests.storage.world import NOW, World, next_id, start, step

VARIANTS: Sequence[tuple[int, OnConflict, type[EngineError] | None]] = (
    (1, "join", None),
    (1, "restart-failed", None),
    (1, "fail", AlreadyStarted),
    (2, "join", PayloadConflict),
)
"""Another's request, what both ask for, and what who comes second is told."""


async def test_a_start_against_a_start(clients: list[Client], gates: ServerGates) -> None:
    """G2: one of them is stored, and the other one finds it."""

    @asynccontextmanager
    async def race(
        request_of_other: int, on_conflict: OnConflict, loses_with: type[EngineError] | None
    ) -> AsyncIterator[Mapping[str, Side]]:
        key, told = f"o-{next_id()}", Told()
        one, other = clients

        yield {
            "one": starting(gates, told, "one", one, key, 1, on_conflict),
            "other": starting(gates, told, "other", other, key, request_of_other, on_conflict),
        }

        handles = [each for each in told.values() if isinstance(each, Execution)]
        errors = [type(each) for each in told.values() if isinstance(each, EngineError)]
        (id,) = {each.request_id for each in handles}
        assert errors == ([] if loses_with is None else [loses_with])
        assert await stored(gates, id, key=key) == whole(id)

    sides = {
        name: (f"{name} asks", f"{name} writes", f"{name} commits") for name in ("one", "other")
    }
    for variant in VARIANTS:
        orders = await every_order(gates, sides, partial(race, *variant))
        assert len(orders) == 2 * 7  # who writes second has to wait, and then nothing to commit


async def test_an_opening_against_an_opening(clients: list[Client], gates: ServerGates) -> None:
    """G2, G3: one of them starts the execution, and both are told to it."""

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        key = f"o-{next_id()}"
        handles: list[Execution[int]] = []

        def telling(name: str, client: Client) -> Side:
            async def run() -> None:
                await gates(f"{name} asks")
                opening = client.with_start(Double, 1, key=key)
                handles.append(await opening.signal(Double.hear, name))

            return run

        yield {name: telling(name, client) for name, client in zip(NAMES, clients, strict=True)}

        (id,) = {each.request_id for each in handles}
        assert await stored(gates, id, key=key) == whole(id)
        signals = [row["payload"] for row in await gates.sql.fetch(SIGNALS, key)]
        assert sorted(signals) == [b'{"what":"one"}', b'{"what":"other"}']

    points = "asks", "writes", "commits"
    sides = {name: [f"{name} {point}" for point in points] for name in NAMES}
    orders = await every_order(gates, sides, race)
    assert len(orders) == 2 * 7


async def test_a_start_in_a_users_transaction_against_a_start(
    clients: list[Client], gates: ServerGates, dsn: str
) -> None:
    """G2, G3: the open transaction decides, or has to take what is there."""
    user = await asyncpg.connect(dsn)

    @asynccontextmanager
    async def race(request_of_other: int, commits: bool) -> AsyncIterator[Mapping[str, Side]]:
        key, told = f"o-{next_id()}", Told()
        start_on = clients[0].start

        async def in_transaction() -> None:
            await gates("begins")
            transaction = user.transaction()
            await transaction.start()
            try:
                told["user"] = await start_on(Double, 1, key=key, connection=user)
            except PayloadConflict as error:
                told["user"] = error
            await gates("ends")
            await (transaction.commit() if commits else transaction.rollback())

        yield {
            "user": in_transaction,
            "other": starting(gates, told, "other", clients[1], key, request_of_other),
        }

        user_told, other_told = told["user"], told["other"]
        if isinstance(other_told, Execution):
            id = other_told.request_id
            shared = isinstance(user_told, Execution) and user_told.request_id == id
            assert shared or not commits or isinstance(user_told, PayloadConflict)
            assert request_of_other == 1 or not (shared and commits)
        else:
            assert isinstance(other_told, PayloadConflict)
            assert isinstance(user_told, Execution)
            assert (commits, request_of_other) == (True, 2)
            id = user_told.request_id
        assert await stored(gates, id, key=key) == whole(id)

    sides = {"user": ("begins", "ends"), "other": ("other asks", "other writes", "other commits")}
    for variant in itertools.product((1, 2), (True, False)):
        orders = await every_order(gates, sides, partial(race, *variant))
        assert len(orders) == 5 + 2  # who begins second has to wait
    await user.close()


async def test_a_fork_against_a_start(
    clients: list[Client], postgres: World, gates: ServerGates
) -> None:
    """G2: one of them is stored as a whole, and the other one is told."""
    process = await postgres.process(register=False)
    pool = f"outlast:{process.runner}:%"
    await gates.hold("fork writes", "dedup", of=pool)
    await gates.hold("fork commits", "dedup", of=pool, commit=True)

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        key, told, forked = f"o-{next_id()}", Told(), list[bool]()
        request = start(key, workflow=Double.name, payload=b"1")
        id = request.envelope.request_id

        async def fork() -> None:
            await gates("fork asks")
            rows = [step(id, 1)]
            forked.append(await process.storage.fork(request, started_at=NOW, journal=rows))

        yield {"fork": fork, "start": starting(gates, told, "one", clients[0], key, 1)}

        found = told["one"]
        assert isinstance(found, Execution)
        assert forked == [found.request_id == id]
        without_inbox: dict[str, list[Snowflake]] = {"inbox": []}
        expected = whole(found.request_id) | (without_inbox if forked[0] else {})
        assert await stored(gates, id, found.request_id, key=key) == expected
        assert len(await process.storage.history(id)) == forked[0]

    sides = {
        "fork": ("fork asks", "fork writes", "fork commits"),
        "start": ("one asks", "one writes", "one commits"),
    }
    assert len(await every_order(gates, sides, race)) == 2 * 7


async def test_two_restarts_of_one_that_failed(
    dsn: str, clients: list[Client], gates: ServerGates
) -> None:
    """G2: it begins again once, for both."""
    for name, client in zip(NAMES, clients, strict=True):
        sessions = f"outlast:{client._node.storage.identity}:%"
        await gates.hold(f"{name} reopens", "journal", of=sessions)
        await gates.hold(f"{name} has reopened", "journal", of=sessions, commit=True)

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        key, told = f"o-{next_id()}", Told()
        execution = await clients[0].start(Double, 1, key=key)
        await gates.sql.execute(FAIL, execution.request_id)

        yield {
            name: starting(gates, told, name, client, key, 1, "restart-failed")
            for name, client in zip(NAMES, clients, strict=True)
        }

        for each in told.values():
            assert isinstance(each, Execution)
            assert each.request_id == execution.request_id
        assert await gates.sql.fetchrow(RUN, execution.request_id) == (2, Status.RUNNING.value)

    sides = {
        name: (f"{name} asks", f"{name} reopens", f"{name} has reopened")
        for name in ("one", "other")
    }
    orders = await every_order(gates, sides, race)
    assert len(orders) == 2 * 3  # whoever loads it last finds it locked, or going on


SIGNALS = """
    select e.payload from engine.envelopes e join engine.inbox i using (request_id)
    where e.entity_id = $1 and e.tag <> 'run'
"""
