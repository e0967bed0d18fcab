"""Headers and the W3C trace context, from the sender through handlers and workflows."""

import asyncio
from typing import Any

import pytest

from engine import Client, Entity, InvalidPayload, Workflow, activity, rpc
from engine.core.trace import checked_headers, checked_trace
from engine.testing import TestCluster

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"
Told = tuple[str | None, dict[str, str]]


class Ends(Entity):
    @rpc
    async def told(self) -> Told:
        return self.trace, dict(self.headers)

    @rpc
    async def told_by_a_task(self) -> Told:
        async with asyncio.TaskGroup() as group:
            return await group.create_task(self.told())


class Relays(Entity):
    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients

    @rpc
    async def relay(self, trace: str | None = None) -> Told:
        headers = {"from": "relay"} if trace is not None else None
        return await self.clients[0].entity(Ends, "e", headers=headers, trace=trace).told()

    @rpc
    async def start(self, id: str) -> str:
        return (await self.clients[0].start(Asks, id)).id


class Asks(Workflow[str, list[Told]]):
    def __init__(self, clients: list[Client]) -> None:
        self.clients = clients

    @classmethod
    def key(cls, request: str) -> str:
        return request

    async def execute(self, request: str) -> list[Told]:
        return [await self.entity(Ends, "e").told(), await self.ask()]

    @activity
    async def ask(self) -> Told:
        return await self.clients[0].entity(Ends, "e").told()


def relaying(clients: list[Client], where: dict[str, Any]) -> TestCluster:
    cluster = TestCluster(Ends(), Relays(clients), Asks(clients), **where)
    clients.append(cluster.client)
    return cluster


async def test_a_handler_reads_what_its_sender_gave(where: dict[str, Any]) -> None:
    async with TestCluster(Ends(), **where) as cluster, asyncio.timeout(10):
        given = cluster.client.entity(Ends, "e", headers={"tenant": "blü"}, trace=TRACE)
        assert await given.told() == (TRACE, {"tenant": "blü"})
        assert await given.told_by_a_task() == (TRACE, {"tenant": "blü"})
        assert await cluster.client.entity(Ends, "e").told() == (None, {})


async def test_messages_sent_by_a_handler_carry_its_trace_on_and_not_its_headers(
    where: dict[str, Any],
) -> None:
    async with relaying([], where) as cluster, asyncio.timeout(10):
        traced = cluster.client.entity(Relays, "r", headers={"tenant": "blue"}, trace=TRACE)
        assert await traced.relay() == (TRACE, {})
        assert await traced.relay(OTHER) == (OTHER, {"from": "relay"})
        assert await cluster.client.entity(Relays, "r").relay() == (None, {})


async def test_a_workflow_passes_on_the_trace_it_was_started_with_also_after_a_crash(
    where: dict[str, Any],
) -> None:
    async with relaying([], where) as cluster, asyncio.timeout(20):
        traced = cluster.client.entity(Relays, "r", trace=TRACE)
        await traced.start("w-1")
        await cluster.crash()
        assert await cluster.client.execution(Asks, "w-1").join() == [(TRACE, {})] * 2
        assert await cluster.client.execute(Asks, "w-2") == [(None, {})] * 2


@pytest.mark.parametrize(
    "trace",
    [
        "",
        "4bf92f3577b34da6a3ce929d0e0e4736",
        TRACE.upper(),
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        "ff" + TRACE[2:],
        TRACE + "\n",
        TRACE + "-" + "x" * 500,
        7,
    ],
)
def test_what_is_no_traceparent_is_refused_with_an_example(trace: object) -> None:
    with pytest.raises(InvalidPayload, match=r"W3C traceparent; pass one such as '00-4bf"):
        checked_trace(trace)


@pytest.mark.parametrize("trace", [None, TRACE, OTHER, "01" + TRACE[2:] + "-more"])
def test_a_traceparent_is_taken_as_it_is(trace: str | None) -> None:
    assert checked_trace(trace) == trace


@pytest.mark.parametrize("headers", [{"a": 1}, {1: "a"}, {"a": None}, "a=b", 7])
def test_headers_are_texts_by_name(headers: object) -> None:
    with pytest.raises(InvalidPayload, match="header"):
        checked_headers(headers)


def test_headers_are_copied() -> None:
    given = {"a": "b"}
    taken = checked_headers(given)
    given["a"] = "c"
    assert taken == {"a": "b"}
    assert checked_headers(None) == {}


async def test_a_prototype_and_the_outside_have_no_trace_and_are_told_so() -> None:
    with pytest.raises(Exception, match="inside a handler of this Ends only"):
        _ = Ends().trace
