"""Any bytes may be stored as a message, by whoever may write rows: none of them wedges its owner.

Each example is stored as a client stores it, but with nothing validated. Then what is well-formed
has to be handled, by the same entities and executions, under the same epochs.
``pytest tests/cluster/test_bad_messages.py --hypothesis-profile=full`` tries many more.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from engine import (
    Deferred,
    Entity,
    Queue,
    Workflow,
    activity,
    rpc,
    signal,
    update,
)
from engine.cluster.queue import queue_of
from engine.core.envelope import EnvelopeRequest, dedup_key
from engine.core.errors import EngineError, InvalidPayload
from engine.core.ids import EntityAddress, EntityId, EntityType, shard_of
from engine.storage.protocol import ExecutionStart, SaveRequest
from engine.storage.queues import queue_type
from engine.testing import TestCluster
from tests.cli.terminal import outlast
from tests.unit.test_fuzz import PAYLOADS, UNFORESEEN, VALUES

T = TypeVar("T")
SHARDS = 4
WITHIN = timedelta(seconds=20)
TRIES = settings(
    max_examples=settings().max_examples // 4,
    phases=[Phase.explicit, Phase.generate],  # what one example wedged stays so for the next
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
TEXTS = (
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
    | st.sampled_from(
        ["'; drop schema engine; --", '"', "%s", "$1", "\\", "\x1b[2J", "\u202e", "é"]
    )
    | st.sampled_from(["../..", "null", "{}", "0", "-1"])
    | st.sampled_from([255, 2000, 5000]).map(lambda size: "x" * size)
)


class Desk(Entity):
    @rpc
    async def put(self, item: dict[str, int]) -> int:
        return sum(item.values())

    @rpc
    async def each(self, count: int) -> Any:
        for number in range(min(count, 3)):
            yield number


class Talk(Workflow[str, str]):
    go = Deferred(str)

    async def execute(self, request: str) -> str:
        return await self.end(await self.go.wait())

    @signal
    async def say(self, text: str) -> None:
        await self.end(text)

    @update
    async def add(self, number: int) -> int:
        return number + 1

    @activity
    async def end(self, text: str) -> str:
        return text.upper()


class Lots(Queue[int, int]):
    concurrency = 2

    async def process(self, item: int) -> int:
        return item * 2


class Live:
    """A cluster that outlives the examples; it rests while they are drawn."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.loop = asyncio.new_event_loop()
        self.cluster = TestCluster(
            Desk(),
            Talk(),
            Lots(),
            dsn=dsn,
            shards_per_group=SHARDS,
            suspend_after=timedelta(milliseconds=20),
            poll_interval=timedelta(milliseconds=200),
            heartbeat_interval=timedelta(hours=1),  # its thread must not rest, and draws at random
            time_to_live=timedelta(hours=9),
        )

    def __enter__(self) -> "Live":
        self.call(self.cluster.__aenter__())
        return self

    def __exit__(self, *_: object) -> None:
        self.call(self.cluster.__aexit__())
        self.loop.close()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(asyncio.wait_for(work, 60))

    @property
    def node(self) -> Any:
        return self.cluster.client._node

    async def store(
        self,
        type: str,
        id: str,
        tag: str,
        payload: bytes,
        *,
        headers: dict[str, str] | None = None,
        shard: Any = None,
        key: str | None = None,
        **what: Any,
    ) -> None:
        """Nothing of it is looked at but whether PostgreSQL has a form for it."""
        place = shard or shard_of("default", SHARDS, type, id)
        address = EntityAddress(place, EntityType(type), EntityId(id))
        envelope = EnvelopeRequest(
            request_id=await self.node.outbox.next_id(),
            address=address,
            tag=tag,
            payload=payload,
            headers=headers or {},
            key=key,
        )
        await self.node.outbox.save(SaveRequest(envelope=envelope, **what))

    async def goes_on(self) -> None:
        """Everything that is well-formed is handled, in the same sessions."""
        client = self.cluster.client
        async with asyncio.timeout(WITHIN.total_seconds()):
            assert await client.entity(Desk, "a").put({"one": 1, "two": 2}) == 3
            talk = await client.start(Talk, "b", key=str(await self.node.outbox.next_id()))
            assert await talk.update(Talk.add, 1) == 2
            await talk.resolve(Talk.go, "done")
            assert await talk.join() == "DONE"
            assert await (await client.submit(Lots, 2)).join() == 4
        assert set(self.cluster.runner.epochs.values()) == {1}


@pytest.fixture(scope="module")
def live(new_database: Callable[[], AbstractContextManager[str]]) -> Iterator[Live]:
    with new_database() as dsn, Live(dsn) as running:
        yield running


@TRIES
@given(tag=st.sampled_from(["put", "each", "nobody", ""]) | TEXTS, payload=PAYLOADS, id=TEXTS)
def test_an_entity_is_told_anything(live: Live, tag: str, payload: bytes, id: str) -> None:
    with suppress(InvalidPayload):
        live.call(live.store("Desk", id, tag, payload))
    live.call(live.goes_on())


TAGS = (
    st.sampled_from(
        [
            *("signal:say", "signal:nobody", "signal:", "update:add", "update:go", "update:"),
            *("resolve:go", "reject:go", "resolve:", "reject:nobody", "query:", "run", ""),
            *("interrupt", "terminate", "retry", "pause", "resume"),
            *("complete:1.1.1.x", "complete:1.0.1.end", "fail:1.0.1.end", "complete:"),
        ]
    )
    | TEXTS
)


@TRIES
@given(told=st.lists(st.tuples(TAGS, PAYLOADS), min_size=1, max_size=4))
@example(told=[("terminate", b"["), ("pause", b"\xff"), ("retry", b"")])
def test_an_execution_is_told_anything(live: Live, told: list[tuple[str, bytes]]) -> None:
    async def tell() -> None:
        id = str(await live.node.outbox.next_id())
        talk = await live.cluster.client.start(Talk, "t", key=id)
        for tag, payload in told:
            with suppress(InvalidPayload):
                await live.store("Talk", id, tag, payload, target=dedup_key("run", "Talk", id))
        with suppress(EngineError):
            await talk.resume()
        with suppress(EngineError):
            await talk.resolve(Talk.go, "x")
        await talk.terminate("enough")
        with suppress(EngineError):
            await talk.join(WITHIN)
        assert (await talk.describe()).status.finished

    live.call(tell())
    live.call(live.goes_on())


ODD_HEADERS = st.dictionaries(
    st.sampled_from(["outlast-deadline", "outlast-timeout", "outlast-queue", "x"]) | TEXTS,
    st.sampled_from(["", "never", "2025-01-01", "2025-01-01T00:00:00+00:00", "nan", "-1", "1e999"])
    | TEXTS,
    max_size=3,
)


@TRIES
@given(payload=PAYLOADS, headers=ODD_HEADERS, id=TEXTS)
@example(payload=b'"x"', headers={"outlast-deadline": "never"}, id="")
def test_an_execution_begins_with_anything(
    live: Live, payload: bytes, headers: dict[str, str], id: str
) -> None:
    async def begin() -> None:
        own = f"{await live.node.outbox.next_id()}{id}"[:255]
        with suppress(InvalidPayload):
            await live.store(
                *("Talk", own, "run", payload),
                headers=headers,
                key=dedup_key("run", "Talk", own),
                execution=ExecutionStart(),
            )
            talk = live.cluster.client.execution(Talk, own)
            await talk.terminate("enough")
            with suppress(EngineError):
                await talk.join(WITHIN)
            assert (await talk.describe()).status.finished

    live.call(begin())
    live.call(live.goes_on())


TERMS = ODD_HEADERS | VALUES.map(lambda value: {"outlast-queue": f"{value}"})


@TRIES
@given(payload=PAYLOADS, headers=TERMS, tag=st.sampled_from(["process", "limit", "pause"]) | TEXTS)
def test_a_queue_is_given_anything(
    live: Live, payload: bytes, headers: dict[str, str], tag: str
) -> None:
    shard = (
        queue_of(Lots)
        .request(
            live.call(live.node.outbox.next_id()),
            shards_in=lambda _: SHARDS,
            payload=b"1",
            terms=queue_of(Lots).terms(
                1, id=None, key=None, priority=None, deliver_at=None, debounce=None
            ),
            id=None,
        )
        .address.shard
    )
    with suppress(InvalidPayload):
        live.call(
            live.store(queue_type("Lots"), "Lots", tag, payload, headers=headers, shard=shard)
        )

    async def as_before() -> None:
        """Some of it is understood."""
        queue = live.cluster.client.queue(Lots)
        await queue.resume()
        await queue.reset("concurrency", "per_key", "per_runner", "rate")

    live.call(as_before())
    live.call(live.goes_on())


@TRIES
@given(id=TEXTS, text=TEXTS, name=TEXTS, number=st.integers(0, 9))
def test_names_and_values_are_data(live: Live, id: str, text: str, name: str, number: int) -> None:
    client = live.cluster.client

    async def ask() -> None:
        key, attributes = f"{await live.node.outbox.next_id()}{id}", {name: text}
        talk = await client.start(Talk, text, key=key, attributes=attributes)
        found = [each async for each in client.executions(workflow="Talk", attributes=attributes)]
        assert talk.id in {each.id for each in found}
        assert (await talk.describe()).attributes == attributes
        await talk.signal(Talk.say, text)
        assert await talk.resolve(Talk.go, text)
        assert await talk.join(WITHIN) == text.upper()
        assert await client.entity(Desk, key, key=name).put({text: number}) == number

    with suppress(InvalidPayload):
        live.call(ask())


LOOKING = ["ls --attribute", "show", "why", "history", "poll", "ls --workflow", "ls --parent"]
LOOKING += ["entities", "state", "queues show", "schedules show", "dead --type", "shards"]
ACTING = [
    "signal",
    "interrupt",
    "resolve",
    "complete",
    "retry",
    "queues pause",
    "start Talk 1 --key",
]


@TRIES
@given(command=st.sampled_from(LOOKING + ACTING), words=st.lists(TEXTS, min_size=1, max_size=3))
def test_a_command_line_of_any_names_is_answered(
    live: Live, command: str, words: list[str]
) -> None:
    said = outlast(*command.split(), *words, "--dsn", live.dsn)
    assert said.code in {0, 1, 2, 3, 4, 5}
    assert UNFORESEEN not in said.err
    assert "\x1b" not in said.err + said.out
    live.call(live.goes_on())
