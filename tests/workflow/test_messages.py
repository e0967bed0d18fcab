"""Messages to a run: signals, queries, updates; and what they see."""

import asyncio
from datetime import timedelta
from typing import Any

import psycopg
import pytest

from engine import (
    ConfigurationError,
    ExecutionFailed,
    InvalidPayload,
    JournalKind,
    NotFound,
    Outcome,
    PayloadConflict,
    Pending,
    RequestFailed,
    Status,
    UpdateRejected,
    Workflow,
    activity,
    query,
    signal,
    update,
)
from engine.testing import TestCluster
from tests.eventually import eventually
from tests.workflow.conftest import World

HOUR = timedelta(hours=1)


class Chat(Workflow[str, list[str]]):
    """Collects what it is told until somebody closes it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.closed = False
        self.spelled = 0

    @classmethod
    def key(cls, request: str) -> str:
        return request

    async def execute(self, request: str) -> list[str]:
        self.seen = []
        await self.wait_until(lambda: self.closed)
        return self.seen

    @signal
    async def say(self, text: str) -> None:
        self.seen.append(text)

    @signal
    def close(self) -> None:
        self.closed = True

    @signal
    async def spell(self, text: str) -> None:
        for letter in text:
            self.seen.append(await self.upper(letter))

    @signal
    def crash(self) -> None:
        raise LookupError("nobody is here")

    @query
    def said(self, since: int = 0) -> list[str]:
        return self.seen[since:]

    @query
    def peek(self, what: str) -> str:
        match what:
            case "step":
                return str(self.upper("x"))
            case "task":
                return str(asyncio.ensure_future(asyncio.sleep(1)))
            case "random":
                return str(self.random().random())
            case "fails":
                raise KeyError("no such thing")
            case _:
                return str(self.now())

    @update
    async def add(self, text: str) -> int:
        self.seen.append(await self.upper(text))
        return len(self.seen)

    @add.validator
    def check(self, text: str) -> None:
        if "!" in text:
            raise ValueError("do not shout")

    @update
    def count(self) -> int:
        return len(self.seen)

    @update
    async def refuse(self) -> None:
        raise PermissionError("not you")

    @update
    async def forever(self) -> None:
        await asyncio.Event().wait()

    @activity
    async def upper(self, text: str) -> str:
        return text.upper()


async def test_signals_are_handled_in_the_order_they_were_sent_in(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        for number in range(20):
            await chat.signal(Chat.say, f"{number}")
        await chat.signal(Chat.close)
        assert await chat.join() == [f"{number}" for number in range(20)]


async def test_signals_are_not_lost_or_repeated_by_crashes(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        for number in range(5):
            await chat.signal(Chat.say, f"{number}")
            await cluster.crash()
        await chat.signal(Chat.close)
        assert await chat.join() == ["0", "1", "2", "3", "4"]


async def test_a_signal_handler_may_run_steps_beside_the_body(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        await chat.signal(Chat.spell, "ab")
        await chat.signal(Chat.close)
        assert await chat.join() == ["A", "B"]


async def test_signals_before_the_start_is_due_wait_for_it(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        delay = HOUR if world.virtual else timedelta(seconds=1)
        chat = await cluster.client.start(Chat, "c", delay=delay)
        await chat.signal(Chat.say, "early")
        await chat.signal(Chat.close)
        if world.virtual:
            await cluster.advance(HOUR / 2)
        assert await chat.poll() == Pending(Status.SCHEDULED)
        await cluster.crash()
        if world.virtual:
            await cluster.advance(HOUR)
        assert await chat.join() == ["early"]


async def test_a_scheduled_execution_is_interrupted_before_it_is_due(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c", delay=HOUR)
        await chat.signal(Chat.say, "early")
        await chat.terminate("never mind")
        with pytest.raises(Exception, match="never mind"):
            await chat.join()


async def test_a_signal_that_cannot_be_read_hurts_no_other(world: World) -> None:
    from engine import by_name

    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        node = cluster.client._node
        for tag, payload in (("signal:say", b'{"text": 1}'), ("signal:nobody", b"{}")):
            message = by_name.Message(
                workflow="Chat", group="default", id="c", tag=tag, payload=payload
            )
            await by_name.signal(node, message)
        await chat.signal(Chat.say, "well")
        await chat.signal(Chat.close)
        assert await chat.join() == ["well"]
        failed = [event for event in await chat.history() if event.outcome is Outcome.FAILED]
    assert [(event.kind, event.name) for event in failed] == [
        (JournalKind.SIGNAL, "say"),
        (JournalKind.SIGNAL, "nobody"),
    ]


async def test_a_signal_that_does_not_validate_is_refused_at_the_call() -> None:
    async with TestCluster(Chat()) as cluster:
        chat = await cluster.client.start(Chat, "c")
        wrong: Any = 7
        with pytest.raises(InvalidPayload, match="text"):
            await chat.signal(Chat.say, wrong)


async def test_a_handler_of_another_kind_or_class_is_refused_at_the_call() -> None:
    class Other(Workflow[str, None]):
        async def execute(self, request: str) -> None: ...

        @signal
        def say(self, text: str) -> None: ...

    async with TestCluster(Chat(), Other()) as cluster:
        chat = await cluster.client.start(Chat, "c")
        for wrong in (Chat.said, Other.say, Chat.upper):
            with pytest.raises(ConfigurationError, match=r"is not a @signal of Chat"):
                await chat.signal(wrong, "x")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="pass that of the workflow's class"):
            await chat.resolve("closed", True)  # type: ignore[arg-type]


async def test_what_a_signal_handler_raises_fails_the_execution(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        await chat.signal(Chat.crash)
        with pytest.raises(ExecutionFailed, match="LookupError: nobody is here"):
            await chat.join()


async def test_signals_with_one_key_are_handled_once(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        once = cluster.client.execution(Chat, "c", key="s-1")
        for _ in range(3):
            await once.signal(Chat.say, "once")
        with pytest.raises(PayloadConflict):
            await once.signal(Chat.say, "twice")
        await chat.signal(Chat.close)
        assert await chat.join() == ["once"]


async def test_who_has_ended_or_is_not_there_takes_no_messages(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        await chat.signal(Chat.close)
        await chat.join()
        for handle in (chat, cluster.client.execution(Chat, "nobody")):
            with pytest.raises(NotFound):
                await handle.signal(Chat.say, "hello?")
            with pytest.raises(NotFound):
                await handle.update(Chat.count)


# --- queries --------------------------------------------------------------------------------------


async def test_a_query_sees_what_was_told_before(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        await chat.update(Chat.add, "a")
        await chat.update(Chat.add, "b")
        assert await chat.query(Chat.said) == ["A", "B"]
        assert await chat.query(Chat.said, since=1) == ["B"]


async def test_a_query_is_answered_by_one_that_sleeps_and_one_that_has_ended(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        await chat.update(Chat.add, "a")
        if world.virtual:
            await cluster.advance(HOUR)
            assert await chat.poll() == Pending(Status.SUSPENDED)
        assert await chat.query(Chat.said) == ["A"]
        before = len(await chat.history())
        await chat.signal(Chat.close)
        await chat.join()
        assert await chat.query(Chat.said) == ["A"]
        assert len(await chat.history()) == before + 1


@pytest.mark.parametrize("what", ["step", "task", "random"])
async def test_a_query_that_schedules_anything_is_an_error_and_changes_nothing(
    world: World, what: str
) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        with pytest.raises(RequestFailed, match=r"the query Chat.peek may only look"):
            await chat.query(Chat.peek, what)
        await cluster.crash()
        assert await chat.update(Chat.add, "a") == 1
        await chat.signal(Chat.close)
        assert await chat.join() == ["A"]


async def test_what_a_query_raises_is_its_callers(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        with pytest.raises(RequestFailed, match="no such thing"):
            await chat.query(Chat.peek, "fails")
        with pytest.raises(NotFound, match="Chat/nobody"):
            await cluster.client.execution(Chat, "nobody").query(Chat.said)
        assert await chat.query(Chat.peek, "now")


async def test_a_query_of_one_that_is_set_aside_is_told_that_it_is_blocked(dsn: str) -> None:
    async with TestCluster(Chat(), dsn=dsn) as cluster:
        chat = await cluster.client.start(Chat, "c")
        assert await chat.query(Chat.said) == []
    with psycopg.connect(dsn) as connection:  # as if it had killed ten runners
        connection.execute("update engine.executions set failures = 10")
    async with TestCluster(Chat(), dsn=dsn) as cluster:
        chat = cluster.client.execution(Chat, "c")
        await chat.signal(Chat.say, "wake up")

        async def blocked() -> bool:
            return (await chat.describe()).status is Status.BLOCKED

        await eventually(blocked)
        async with asyncio.timeout(10):
            with pytest.raises(RequestFailed, match="is blocked"):
                await chat.query(Chat.said)


async def test_an_async_query_is_refused_where_it_is_defined() -> None:
    with pytest.raises(ConfigurationError, match="a query only looks"):

        class Wrong(Workflow[str, None]):
            @query
            async def look(self) -> None: ...


# --- updates --------------------------------------------------------------------------------------


async def test_an_update_is_answered_with_what_its_handler_returns(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        assert [await chat.update(Chat.add, text) for text in "abc"] == [1, 2, 3]
        assert await chat.update(Chat.count) == 3
        await cluster.crash()
        assert await chat.update(Chat.count) == 3
        await chat.signal(Chat.close)
        assert await chat.join() == ["A", "B", "C"]


async def test_a_rejected_update_leaves_no_trace(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        await chat.update(Chat.add, "a")
        before = await chat.history()
        with pytest.raises(UpdateRejected, match="do not shout"):
            await chat.update(Chat.add, "b!")
        assert await chat.history() == before
        await cluster.crash()
        assert await chat.update(Chat.count) == 1


async def test_what_an_update_raises_is_its_callers_and_the_run_goes_on(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        with pytest.raises(RequestFailed, match="not you") as caught:
            await chat.update(Chat.refuse)
        assert caught.value.error.type == "PermissionError"
        assert await chat.update(Chat.count) == 0


async def test_updates_with_one_key_run_once_and_share_the_answer(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        await cluster.client.start(Chat, "c")
        once = cluster.client.execution(Chat, "c", key="u-1")
        answers = await asyncio.gather(*(once.update(Chat.add, "a") for _ in range(5)))
        assert answers == [1] * 5
        await cluster.crash()
        assert await once.update(Chat.add, "a") == 1
        with pytest.raises(PayloadConflict):
            await once.update(Chat.add, "b")
        assert await cluster.client.execution(Chat, "c").query(Chat.said) == ["A"]


@pytest.mark.parametrize("end", ["terminate", "interrupt"])
async def test_an_update_under_way_is_answered_when_the_execution_ends(
    world: World, end: str
) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        waiting = asyncio.ensure_future(chat.update(Chat.forever))
        await world.until(cluster, lambda: _journaled(chat, JournalKind.UPDATE))
        await cluster.crash()
        await getattr(chat, end)("over")
        with pytest.raises(RequestFailed, match="ended before it was answered"):
            await waiting


async def test_a_run_waits_for_its_handlers_before_it_ends(world: World) -> None:
    async with world.cluster(Chat()) as cluster, asyncio.timeout(40):
        chat = await cluster.client.start(Chat, "c")
        answer = asyncio.ensure_future(chat.update(Chat.add, "last"))
        await world.until(cluster, lambda: _journaled(chat, JournalKind.UPDATE))
        await chat.signal(Chat.close)
        assert await answer == 1
        assert await chat.join() == ["LAST"]


async def _journaled(execution: Any, kind: JournalKind) -> bool:
    return any(event.kind is kind for event in await execution.history())
