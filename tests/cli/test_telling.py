"""``signal``, ``update``, ``query``, ``terminate``: as one who has not got the code of the run."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from engine import Client, Runner, Workflow, query, signal, update
from tests.cli.terminal import do, settings


class Chat(Workflow[str, list[str]]):
    def __init__(self) -> None:
        self.seen: list[str] = []
        self.open = True

    async def execute(self, request: str) -> list[str]:
        self.seen = []
        await self.wait_until(lambda: not self.open)
        return self.seen

    @signal
    def say(self, text: str) -> None:
        self.seen.append(text)

    @signal
    def close(self) -> None:
        self.open = False

    @query
    def said(self, since: int = 0) -> list[str]:
        return self.seen[since:]

    @update
    async def add(self, text: str) -> int:
        self.seen.append(text)
        return len(self.seen)

    @add.validator
    def check(self, text: str) -> None:
        if not text:
            raise ValueError("say something")


@asynccontextmanager
async def chatting(dsn: str) -> AsyncGenerator[Client]:
    async with Runner(settings(dsn)).register(Chat()) as runner:
        await runner.client.start(Chat, "room", key="c")
        yield runner.client


async def test_a_run_is_told_asked_and_looked_into_by_names(dsn: str) -> None:
    async with chatting(dsn):
        told = await do("signal", "c", "say", '{"text": "hi"}', dsn=dsn)
        table = await do("signal", "c", "say", '{"text": "ho"}', "--table", dsn=dsn)
        answer = await do("update", "c", "add", '{"text": "hm"}', dsn=dsn)
        seen = await do("query", "Chat/c", "said", dsn=dsn)
        since = await do("query", "c", "said", '{"since": 2}', "--timeout", "20s", dsn=dsn)
        await do("signal", "c", "close", dsn=dsn)
        ended = await do("join", "c", dsn=dsn)
        after = await do("query", "c", "said", dsn=dsn)
        shown = await do("show", "c", "--table", dsn=dsn)

    assert told.lines == [{"id": "Chat/c", "signal": "say", "stored": True}]
    assert table.out == "told Chat/c: say\n"
    assert (answer.code, answer.out) == (0, "3\n")
    assert seen.out == after.out == ended.out
    assert "hi" in seen.out
    assert "hm" in since.out
    assert "hi" not in since.out
    for line in ("signal say", "update add", "answer add", "signal close"):
        assert line in shown.out


async def test_what_was_refused_or_is_not_there_is_said_so(dsn: str) -> None:
    async with chatting(dsn):
        refused = await do("update", "c", "add", '{"text": ""}', dsn=dsn)
        unknown = await do("query", "c", "nothing", dsn=dsn)
        wrong = await do("query", "c", "said", '{"since": "x"}', dsn=dsn)
        positional = await do("signal", "c", "say", '"hi"', dsn=dsn)
        nobody = await do("signal", "Chat/nobody", "say", '{"text": "hi"}', dsn=dsn)

    assert "UpdateRejected: say something" in refused.err
    assert refused.code == 1
    assert (unknown.code, "no query named 'nothing'" in unknown.err) == (1, True)
    assert (wrong.code, "since" in wrong.err) == (1, True)
    assert (positional.code, "in a JSON object" in positional.err) == (2, True)
    assert nobody.code == 3


async def test_a_run_that_is_not_there_is_started_by_what_it_is_told(dsn: str) -> None:
    async with chatting(dsn):
        hi, room = '{"text": "hi"}', '"room"'
        told = await do("signal", "Chat/new", "say", hi, "--start", room, dsn=dsn)
        answer = await do("update", "Chat/new", "add", hi, "--start", ' "room" ', dsn=dsn)
        other = await do("signal", "Chat/new", "say", hi, "--start", '"hall"', dsn=dsn)
        short = await do("signal", "new", "say", hi, "--start", room, dsn=dsn)
        unknown = await do("signal", "Chatt/new", "say", hi, "--start", room, dsn=dsn)
        seen = await do("query", "Chat/new", "said", dsn=dsn)

    assert told.lines == [{"id": "Chat/new", "signal": "say", "stored": True}]
    assert answer.lines == [2]
    assert (other.code, "started before with another request" in other.err) == (1, True)
    assert (short.code, "Workflow/key" in short.err) == (2, True)
    assert (unknown.code, "no live runner serves a workflow 'Chatt'" in unknown.err) == (3, True)
    assert seen.lines == [["hi", "hi"]]


async def test_a_termination_ends_it_and_join_is_exit_code_5(dsn: str) -> None:
    async with chatting(dsn):
        asked = await do("terminate", "c", "--reason", "enough", dsn=dsn)
        ended = await do("join", "c", dsn=dsn)
        again = await do("terminate", "c", "--table", dsn=dsn)
        late = await do("signal", "c", "say", '{"text": "hi"}', dsn=dsn)

    assert asked.lines == [{"id": "Chat/c", "terminated": True}]
    assert (ended.code, "enough" in ended.err) == (5, True)
    assert again.out == "Chat/c had ended before\n"
    assert (late.code, "has ended" in late.err) == (3, True)
