"""Entities from the command line: listed, their state seen and replaced."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import pytest
from pydantic import BaseModel

from engine import Client, Entity, Runner, State, rpc
from tests.cli.orders import Stock
from tests.cli.terminal import do, settings
from tests.eventually import eventually


class Items(BaseModel):
    cents: int = 0
    names: list[str] = []


class Cart(Entity):
    state = State(Items)

    @rpc
    async def add(self, name: str, cents: int) -> int:
        self.state.names.append(name)
        self.state.cents += cents
        return self.state.cents

    @rpc(readonly=True)
    async def names(self) -> list[str]:
        return self.state.names


class Nook(Entity):
    """Served by nobody."""

    shard_group = "far"

    @rpc
    async def ping(self) -> None: ...


@asynccontextmanager
async def shopping(dsn: str, *more: Entity) -> AsyncGenerator[Client]:
    """A runner with two carts, and messages for an entity that nobody serves."""
    async with Runner(settings(dsn)).register(Stock(), Cart(), *more) as runner:
        client = runner.client
        await client.entity(Cart, "b/1").add("tea", 300)
        await client.entity(Cart, "a").add("milk", 100)
        await client.entity(Cart, "a").add("bread", 200)
        for _ in range(2):
            await client.tell(client.entity(Nook, "n").ping)
        yield client


async def test_entities_are_listed_with_what_waits_for_them_and_their_state(dsn: str) -> None:
    async with shopping(dsn):
        a, b, nook = (await do("entities", dsn=dsn)).lines
        (only,) = (await do("entities", "Nook", dsn=dsn)).lines
        table = (await do("entities", "--table", dsn=dsn)).out

    assert [f"{each['entity']}/{each['id']}" for each in (a, b, nook)] == [
        "Cart/a",
        "Cart/b/1",
        "Nook/n",
    ]
    assert (a["version"], b["version"], nook["version"]) == (2, 1, None)
    assert (a["waiting"], nook["waiting"]) == (0, 2)
    assert a["saved_at"]
    assert a["runner"]
    assert nook["oldest_at"]
    assert nook["oldest"].isdigit()
    assert (nook["runner"], nook["shard"][:4]) == (None, "far:")
    assert only == nook
    lines = [line.split() for line in table.splitlines()]
    assert lines[0] == ["ENTITY", "WAITING", "OLDEST", "VERSION", "SAVED", "SHARD", "OWNER"]
    assert lines[1][:2] == ["Cart/a", "2"]
    assert (lines[3][:2], lines[3][-1]) == (["Nook/n", "2"], "nobody")


async def test_entities_come_page_by_page(dsn: str) -> None:
    async with shopping(dsn):
        first = await do("entities", "-n", "1", "--table", dsn=dsn)
        rest = (await do("entities", "--after", "Cart/a", dsn=dsn)).lines
        none = await do("entities", "Nope", "--table", dsn=dsn)

    assert "--after Cart/a" in first.err
    assert [each["id"] for each in rest] == ["b/1", "n"]
    assert (none.code, none.out) == (0, "no entity has a state or waiting messages of type Nope\n")


async def test_the_state_of_an_entity_is_shown_with_its_version(dsn: str) -> None:
    async with shopping(dsn):
        (shown,) = (await do("state", "Cart/a", dsn=dsn)).lines
        drawn = (await do("state", "Cart/b/1", "--table", dsn=dsn)).out

    assert (shown["entity"], shown["id"], shown["version"]) == ("Cart", "a", 2)
    assert shown["state"] == {"cents": 300, "names": ["milk", "bread"]}
    assert shown["saved_at"]
    assert drawn.startswith("Cart/b/1  version 1, saved ")
    assert '"tea"' in drawn


async def test_a_state_is_replaced_at_the_version_that_was_seen_and_no_other(dsn: str) -> None:
    async with shopping(dsn) as client:
        new = '{"cents": 5, "names": ["gum"]}'
        done = await do("state", "Cart/a", "--set", new, "--version", "2", dsn=dsn)
        late = await do("state", "Cart/a", "--set", new, "--version", "2", dsn=dsn)
        same = await do("state", "Cart/a", "--set", new, "--version", "3", "--table", dsn=dsn)
        piped = await do("state", "Cart/a", "--set", "-", "--version", "3", dsn=dsn, stdin="{}")
        said = await do("state", "Cart/new", "--set", new, "--version", "0", "--table", dsn=dsn)

        assert (done.code, done.lines) == (0, [{"entity": "Cart", "id": "a", "version": 3}])
        assert (late.code, late.out) == (1, "")
        assert "the state is at version 3, not 2" in late.err
        assert same.out == "Cart/a was like that before, at version 3\n"
        assert piped.lines == [{"entity": "Cart", "id": "a", "version": 4}]
        assert said.out == "Cart/new is at version 1 now\n"
        assert await client.entity(Cart, "a").names() == []
        assert await client.entity(Cart, "new").add("tea", 1) == 6


async def test_what_is_no_state_is_refused_and_leaves_no_dead_letter(dsn: str) -> None:
    async with shopping(dsn):
        wrong = await do("state", "Cart/a", "--set", '{"cents": "x"}', "--version", "2", dsn=dsn)
        stateless = await do("state", "Stock/s", "--set", "{}", "--version", "0", dsn=dsn)
        dead = await do("dead", dsn=dsn)
        (kept,) = (await do("state", "Cart/a", dsn=dsn)).lines

    assert wrong.code == 1
    assert "the state of Cart/a was not replaced" in wrong.err
    assert "cents" in wrong.err
    assert stateless.code == 1
    assert "Stock has no State" in stateless.err
    assert (dead.code, dead.lines) == (0, [])
    assert kept["version"] == 2


async def test_an_edit_that_nobody_can_make_now_is_told_so_and_made_later(dsn: str) -> None:
    async with shopping(dsn):
        pass
    edit = ["state", "Cart/a", "--set", "{}", "--version", "2", "--timeout", "50ms"]
    ended = await do(*edit, dsn=dsn)

    assert ended.code == 4
    assert "has not answered within 50ms" in ended.err
    async with Runner(settings(dsn)).register(Cart()) as runner, asyncio.timeout(10):
        await eventually(lambda: replaced(runner.client))


async def replaced(client: Client) -> bool:
    return await client.entity(Cart, "a").names() == []


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("state Cart/none", 3, "no stored state; 'outlast entities Cart' lists"),
        ("state Cart", 2, "does not name an entity: write TYPE/ID"),
        ("state Cart/", 2, "does not name an entity: write TYPE/ID"),
        ("entities --after Cart", 2, "does not name an entity: write TYPE/ID"),
        ("state Cart/a --set {}", 2, "--set and --version go together"),
        ("state Cart/a --version 2", 2, "--set and --version go together"),
        ("state Cart/a --set {] --version 2", 2, "the state is not JSON"),
        ("state Nope/a --set {} --version 0", 3, "no live runner serves an entity 'Nope'"),
        ("state Slow/a --set {} --version 0", 3, "no live runner serves an entity 'Slow'"),
        ("state Cart/a --set {} --version 0 --timeout soon", 2, "not a duration"),
    ],
)
async def test_what_cannot_be_meant_is_told_with_the_way_out(
    dsn: str, command: str, code: int, message: str
) -> None:
    from tests.cli.orders import Slow

    async with Runner(settings(dsn)).register(Slow()):
        ended = await do(*command.split(), dsn=dsn)

    assert (ended.code, ended.out) == (code, "")
    assert message in ended.err
