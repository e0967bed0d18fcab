"""Volatile streams whose consumer's process may be gone. (On PostgreSQL, where time goes on.)"""

import asyncio
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import pytest

from engine.testing import TestCluster
from tests.cluster.post import Relay, sender_elsewhere
from tests.eventually import eventually

TTL = timedelta(seconds=3)
SETTINGS: dict[str, Any] = {
    "stream_window": 8,
    "heartbeat_interval": TTL / 3,
    "time_to_live": TTL,
    "poll_interval": TTL / 20,
    "poll_interval_degraded": TTL / 20,
}


@pytest.fixture(params=[True, False], ids=["", "without notifications"])
def where(request: pytest.FixtureRequest, dsn: str) -> dict[str, Any]:
    return {**SETTINGS, "dsn": dsn, "notifications": request.param}


@pytest.mark.parametrize(
    ("signs", "present"), [(True, False), (False, True), (False, False)], ids=str
)
async def test_a_stream_ends_when_its_consumers_process_says_nothing_and_has_no_session(
    where: dict[str, Any], signs: bool, present: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, loop = Relay(), asyncio.get_running_loop()
    async with TestCluster(relay, **where) as cluster, sender_elsewhere(cluster) as one:
        if not signs:
            monkeypatch.setattr(one.node.mail.volatile, "sign", lambda _: None)
        if not present:
            monkeypatch.setattr(cluster.runner._incarnation.storage, "present", nobody)
        async with aclosing(one.client.entity(Relay, "a").items(100)) as items:  # type: ignore[type-var]
            assert await anext(items) == 0
            if signs or present:
                later = loop.time() + 2 * TTL.total_seconds()
                await eventually(lambda: loop.time() > later)
                assert [item async for item in items] == list(range(1, 100))
            else:
                await eventually(lambda: relay.log[-1] == "closed")


async def nobody(_: object) -> set[object]:
    return set()


async def test_a_call_that_is_no_stream_ends_by_itself(
    where: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    relay, loop = Relay(), asyncio.get_running_loop()
    async with TestCluster(relay, **where) as cluster, sender_elsewhere(cluster) as one:
        monkeypatch.setattr(one.node.mail.volatile, "sign", lambda _: None)
        monkeypatch.setattr(cluster.runner._incarnation.storage, "present", nobody)
        call = asyncio.ensure_future(one.client.entity(Relay, "a").wait())
        later = loop.time() + 2 * TTL.total_seconds()
        await eventually(lambda: loop.time() > later)
        relay.go.set()
        assert await call == "done"
