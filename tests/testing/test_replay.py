"""Histories: exported, read again, replayed against the code that made them and other code."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import (
    ConfigurationError,
    Deferred,
    InvalidPayload,
    NonDeterminism,
    Workflow,
    activity,
    signal,
    update,
)
from engine.testing import History, TestCluster, load_histories, replay


class Chat(Workflow[int, list[str]]):
    name = "Chat"
    closed = Deferred(str)

    def __init__(self) -> None:
        self.said: list[str] = []

    @classmethod
    def key(cls, request: int) -> str:
        return "chat"

    async def execute(self, request: int) -> list[str]:
        self.said = []
        self.draw = self.random().random()
        await self.wait_until(lambda: len(self.said) == 2, timeout=timedelta(days=1))
        if request:
            await self.continue_as_new(request - 1)
        await self.note(self.draw)
        self.said.append(await self.closed.wait())
        return self.said

    @signal
    async def say(self, text: str) -> None:
        self.said.append(text)

    @update
    async def ask(self, text: str) -> str:
        self.said.append(text)
        return text.upper()

    @activity
    async def note(self, number: float) -> float:
        return number


async def chatted(*, end: bool = True) -> History:
    async with TestCluster(Chat()) as cluster:
        execution = await cluster.client.start(Chat, 1)
        for _ in range(2):
            await execution.signal(Chat.say, "grüß ☃ \ud800"[:6])
            assert await execution.update(Chat.ask, "b") == "B"
            await cluster.advance(timedelta(hours=1))
        if end:
            await execution.resolve(Chat.closed, "end")
            assert (await execution.join())[-1] == "end"
        history = await execution.history()
        assert isinstance(history, History)
        return history


async def test_a_history_fits_the_code_that_made_it_over_all_of_its_runs() -> None:
    history = await chatted()

    assert {event.run for event in history} == {1, 2}
    await replay(history, Chat())


async def test_one_that_goes_on_still_fits_too() -> None:
    await replay(await chatted(end=False), Chat())


async def test_what_is_read_from_a_file_is_what_was_exported(tmp_path: Path) -> None:
    histories = [await chatted(), await chatted(end=False)]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(each.export() for each in histories), encoding="utf-8")

    loaded = load_histories(file)

    assert loaded == histories
    for one, other in zip(loaded, histories, strict=True):
        assert list(one.recorded.journal) == list(other.recorded.journal)
        assert one.recorded.envelope.payload == other.recorded.envelope.payload
        await replay(one, Chat())


class FirstRunChanged(Chat):
    name = "Chat"

    async def execute(self, request: int) -> list[str]:
        if request:
            await self.note(1.5)
        return await super().execute(request)


class GoesOn(Chat):
    name = "Chat"

    async def execute(self, request: int) -> list[str]:
        found = await super().execute(request)
        await self.note(0.0)
        return found


class Raises(Chat):
    name = "Chat"

    async def execute(self, request: int) -> list[str]:
        await super().execute(request)
        raise ValueError("no more")


class WithoutHandler(Workflow[int, list[str]]):
    name = "Chat"

    async def execute(self, request: int) -> list[str]:
        await self.sleep(timedelta(days=1))
        return []


CASES = [
    (FirstRunChanged, "the beginning of this run|timer|signal|run 1", "note"),
    (GoesOn, "the end of the execution", "asks for step note#2"),
    (Raises, "the end of the execution with a result", "raises ValueError: no more"),
    (WithoutHandler, "signal say", "has no signal of that name"),
]


@pytest.mark.parametrize(("changed", "expected", "found"), CASES)
async def test_a_mismatch_names_expected_found_and_line(
    changed: type[Workflow[Any, Any]], expected: str, found: str
) -> None:
    with pytest.raises(NonDeterminism) as raised:
        await replay(await chatted(), changed())

    assert any(each in raised.value.expected for each in expected.split("|"))
    assert found in raised.value.found
    assert f"{__file__}:" in raised.value.where


async def test_replaying_runs_no_step() -> None:
    class Counting(Chat):
        name = "Chat"
        ran = 0

        @activity
        async def note(self, number: float) -> float:
            Counting.ran += 1
            return number

    await replay(await chatted(), Counting())

    assert Counting.ran == 0


async def test_a_copy_of_a_history_is_refused() -> None:
    history = await chatted()

    with pytest.raises(ConfigurationError, match="does not know the execution"):
        await replay(history[:2], Chat())


async def test_another_workflow_is_refused() -> None:
    class Other(Workflow[int, int]):
        async def execute(self, request: int) -> int:
            return request

    with pytest.raises(ConfigurationError, match="of the history is of Chat"):
        await replay(await chatted(), Other())


@pytest.mark.parametrize("text", ["nonsense\n", '{"run": 1}\n', '{"outlast": 99}\n', "[]\n", "3\n"])
def test_a_file_that_is_none_is_refused_with_the_line(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("\n" + text)

    with pytest.raises(InvalidPayload, match="line 2 is not of an exported history"):
        load_histories(file)


class Flaky(Workflow[int, int]):
    def __init__(self, *, broken: bool = False) -> None:
        self.broken = broken

    async def execute(self, request: int) -> int:
        first = await self.double(request)
        if self.broken:
            raise ValueError("a mistake in the code")
        return await self.double(first)

    @activity
    async def double(self, number: int) -> int:
        return number * 2


async def test_what_was_retried_or_forked_fits_the_code_it_went_on_with() -> None:
    async with TestCluster(Flaky(broken=True)) as cluster:
        execution = await cluster.client.start(Flaky, 1)
        await cluster.settle()
        database = cluster.database
    async with TestCluster(Flaky(), database=database) as cluster:
        repaired = cluster.client.execution(Flaky, execution.id)
        await repaired.retry()
        assert await repaired.join() == 4
        fork = await repaired.fork("double", key="again", request=5)
        assert await fork.join() == 20
        histories = [await repaired.history(), await fork.history()]

    for history in histories:
        await replay(history, Flaky())
