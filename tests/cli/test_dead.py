"""Dead letters from the command line: listed, shown, and delivered again."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from engine import Entity, EntityDefect, RequestFailed, Runner, rpc
from tests.cli.orders import Broken, Stock
from tests.cli.terminal import Ended, do, outlast, settings


class Ghost(Entity):
    """Registered late, if at all."""

    @rpc
    async def say(self, what: str) -> str:
        return f"{self.entity_id} says {what}"


class Shade(Ghost):
    """Another one."""


class Cursed(Entity):
    """Breaks at each message."""

    @rpc
    async def open(self, n: int) -> int:
        raise EntityDefect("it is cursed")


@asynccontextmanager
async def haunted(dsn: str) -> AsyncGenerator[Runner]:
    """A runner that gives messages up whose type it does not know, with some of them."""
    impatient = settings(dsn).model_copy(
        update={"unregistered_timeout": timedelta(milliseconds=20)}
    )
    async with Runner(impatient).register(Stock(), Broken()) as runner:
        for ghost, id in ((Ghost, "a"), (Ghost, "b"), (Shade, "a")):
            with pytest.raises(RequestFailed, match="to be registered"):
                await runner.client.entity(ghost, id, key=f"{ghost.name} {id}").say("boo")
        yield runner


async def names(*options: str, dsn: str) -> list[str]:
    ended = await do("dead", *options, dsn=dsn)
    assert (ended.code, ended.err) == (0, "")
    return [f"{line['entity']}/{line['id']}" for line in ended.lines]


async def test_dead_letters_are_listed_youngest_first_and_filtered(dsn: str) -> None:
    async with haunted(dsn):
        lines = (await do("dead", dsn=dsn)).lines

        assert await names(dsn=dsn) == ["Shade/a", "Ghost/b", "Ghost/a"]
        assert await names("--type", "Ghost", dsn=dsn) == ["Ghost/b", "Ghost/a"]
        assert await names("--type", "Ghost", "--id", "a", dsn=dsn) == ["Ghost/a"]
        assert await names("--id", "a", dsn=dsn) == ["Shade/a", "Ghost/a"]
        assert await names("--limit", "1", dsn=dsn) == ["Shade/a"]
        assert await names("--after", lines[0]["request_id"], dsn=dsn) == ["Ghost/b", "Ghost/a"]
        assert await names("--type", "Nobody", dsn=dsn) == []
    assert (lines[2]["method"], lines[2]["payload"]) == ("say", {"what": "boo"})
    assert lines[2]["error"]["type"] == "NotRegistered"


async def test_on_a_terminal_they_are_a_table(dsn: str) -> None:
    async with haunted(dsn):
        table = await do("dead", "--table", "--limit", "3", dsn=dsn)
        none = await do("dead", "--table", "--type", "Nobody", dsn=dsn)

    head, first, *_ = [line.split() for line in table.out.splitlines()]
    assert head == ["REQUEST", "ENTITY", "METHOD", "SENT", "ERROR"]
    assert first[1:3] == ["Shade/a", "say"]
    assert "NotRegistered:" in first
    assert f"--after {table.out.splitlines()[3].split()[0]}" in table.err
    assert none.out == "no dead letters match\n"


def test_without_any_that_is_said(dsn: str) -> None:
    assert outlast("dead", "--table", dsn=dsn) == Ended(0, "no dead letters\n", "")
    assert outlast("dead", dsn=dsn) == Ended(0, "", "")


async def test_one_is_shown_with_its_error_and_payload(dsn: str) -> None:
    async with haunted(dsn):
        listed = (await do("dead", dsn=dsn)).lines
        id = listed[0]["request_id"]
        shown = await do("dead", "show", id, "--table", dsn=dsn)
        piped = await do("dead", "show", id, dsn=dsn)

    assert piped.lines == [listed[0]]
    assert shown.out.startswith(f"Shade/a  request {id}\n")
    words = " ".join(shown.out.split())
    for expected in (
        'payload {"what": "boo"}',
        f"next outlast dead retry {id}",
        "NotRegistered: the runner of shard",
    ):
        assert expected in words


async def test_an_error_is_shown_with_the_traceback_of_its_cause(dsn: str) -> None:
    strict = settings(dsn).model_copy(update={"max_deliveries": 4})
    async with Runner(strict).register(Cursed()) as runner:
        with pytest.raises(RequestFailed, match="lost 4 times"):
            await runner.client.entity(Cursed, "c").open(1)
        (letter,) = await _lines(dsn)
        shown = await do("dead", "show", letter["request_id"], "--table", dsn=dsn)

    assert letter["error"]["cause"]["message"] == "it is cursed"
    assert "caused by EntityDefect: it is cursed" in shown.out
    assert 'raise EntityDefect("it is cursed")' in shown.out


async def test_named_ones_are_delivered_again(dsn: str) -> None:
    async with haunted(dsn) as runner:
        ids = {line["entity"] + line["id"]: line["request_id"] for line in (await _lines(dsn))}
        runner.register(Ghost(), Shade())
        retried = await do("dead", "retry", ids["Ghosta"], ids["Ghostb"], dsn=dsn)
        again = await do("dead", "retry", ids["Shadea"], "--table", dsn=dsn)
        async with asyncio.timeout(10):
            said = [
                await runner.client.entity(ghost, id, key=f"{ghost.name} {id}").say("boo")
                for ghost, id in ((Ghost, "a"), (Ghost, "b"), (Shade, "a"))
            ]

    assert retried.lines == [
        {"request_id": ids[name], "retried": True} for name in ("Ghosta", "Ghostb")
    ]
    assert again.out == "1 dead letter will be delivered again\n"
    assert said == ["a says boo", "b says boo", "a says boo"]
    assert await _lines(dsn) == []


async def test_all_of_a_type_are_delivered_again_after_a_confirmation(dsn: str) -> None:
    async with haunted(dsn) as runner:
        runner.register(Ghost(), Shade())
        unconfirmed = await do("dead", "retry", "--all", "--type", "Ghost", dsn=dsn)
        retried = await do("dead", "retry", "--all", "--type", "Ghost", "--yes", dsn=dsn)

        assert (unconfirmed.code, unconfirmed.out) == (2, "")
        assert (
            "--all would deliver 2 dead letters again: confirm that with --yes" in unconfirmed.err
        )
        assert len(retried.lines) == 2
        assert await names(dsn=dsn) == ["Shade/a"]


async def test_at_a_terminal_it_asks_how_many_are_meant(dsn: str) -> None:
    async with haunted(dsn):
        no = await do("dead", "retry", "--all", dsn=dsn, typed="n\n")
        yes = await do("dead", "retry", "--all", dsn=dsn, typed="y\n")

    assert (no.code, no.out) == (1, "")
    assert no.err.startswith("deliver 3 dead letters again? [y/N] ")
    assert "nothing was delivered again" in no.err
    assert (yes.code, len(yes.lines)) == (0, 3)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["retry"], 2, "name the dead letters by their request ids, or give --all"),
        (["retry", "5", "--all"], 2, "or give --all"),
        (["retry", "5", "--type", "Ghost"], 2, "--type and --id go with --all"),
        (["retry", "x"], 2, "'x' is not a request id"),
        (["show", "99999999999999999999"], 2, "is not a request id"),
        (["retry", "5"], 3, "request 5 is no dead letter: 'outlast dead' lists those there are"),
        (["show", "5"], 3, "request 5 is no dead letter"),
        (["--after", "x"], 2, "'x' is not a request id"),
        (["bury"], 2, "No such command 'bury'"),
    ],
)
def test_what_cannot_be_meant_is_said(dsn: str, words: list[str], code: int, said: str) -> None:
    ended = outlast("dead", *words, dsn=dsn)

    assert (ended.code, ended.out) == (code, "")
    assert said in ended.err


def test_the_connection_may_be_told_before_or_behind_the_subcommand(dsn: str) -> None:
    before = outlast("dead", "--dsn", dsn, "--table", "show", "5")
    behind = outlast("dead", "show", "5", "--dsn", dsn)

    assert (before.code, behind.code) == (3, 3)


async def _lines(dsn: str) -> list[Any]:
    return (await do("dead", dsn=dsn)).lines
