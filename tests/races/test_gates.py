"""The gates themselves: each order comes about once, and one that fails is named."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import asyncpg
import pytest

from tests.gates import Gates, ServerGates, Side, every_order


def sides_of(gates: Gates, log: list[str], **points: tuple[str, ...]) -> Mapping[str, Side]:
    def side(mine: tuple[str, ...]) -> Side:
        async def run() -> None:
            for point in mine:
                await gates(point)
                log.append(point)

        return run

    return {name: side(mine) for name, mine in points.items()}


async def test_each_order_comes_about_once() -> None:
    gates, logs = Gates(), list[list[str]]()
    points = {"one": ("a", "b"), "other": ("x", "y")}

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        log: list[str] = []
        yield sides_of(gates, log, **points)
        logs.append(log)

    orders = await every_order(gates, points, race)

    assert len(set(orders)) == len(orders) == 6
    assert logs == [list(order) for order in orders]
    assert all(order.index("a") < order.index("b") for order in orders)


async def test_the_order_that_fails_is_told() -> None:
    gates = Gates()
    points = {"one": ("a",), "other": ("x",)}

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        log: list[str] = []
        yield sides_of(gates, log, **points)
        assert log == ["a", "x"]

    with pytest.raises(AssertionError) as caught:
        await every_order(gates, points, race)

    assert caught.value.__notes__ == ["in the order: x, a"]


async def test_what_the_other_side_has_locked_is_waited_for(dsn: str, gates: ServerGates) -> None:
    await gates.sql.execute("create table engine.keys (key int primary key)")
    for name in ("one", "other"):
        await gates.hold(f"{name} writes", "keys", of=name)
        await gates.hold(f"{name} commits", "keys", of=name, commit=True)
    sessions = [
        await asyncpg.connect(dsn, server_settings={"application_name": name})
        for name in ("one", "other")
    ]
    insert = "insert into engine.keys values (1) on conflict do nothing"

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        await gates.sql.execute("truncate engine.keys")
        one, other = sessions
        yield {"one": lambda: one.execute(insert), "other": lambda: other.execute(insert)}

    sides = {name: (f"{name} writes", f"{name} commits") for name in ("one", "other")}
    orders = await every_order(gates, sides, race)

    assert sorted(orders) == [
        ("one writes", "one commits", "other writes"),
        ("one writes", "other writes", "one commits"),
        ("other writes", "one writes", "other commits"),
        ("other writes", "other commits", "one writes"),
    ]
    for session in sessions:
        await session.close()
