"""A standby takes the place of the server while clients call and runners work.

Whoever has a session with the old primary loses it, and nobody reaches it any more.
"""

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.chaos.a_round import Run, a_round, told
from tests.chaos.cluster import Process
from tests.chaos.standby import Pair, pair, port_of

SECONDS = 4.0
KEPT = "select to_regclass('last') is not null"
INSIDE = {
    *("chunks", "early", "effects", "ended", "epochs", "fenced", "journal", "keys"),
    *("one exit", "twice"),
}
"""Promises that what is stored keeps by itself, whatever was lost."""


class FailOver:
    """Lets the standby take over; unless it is ``synchronous``, without the last commits."""

    def __init__(self, run: Run, servers: Pair, *, synchronous: bool) -> None:
        self.done: Counter[str] = Counter()
        self.ended: set[Process] = set()
        self._run = run
        self._servers = servers
        self._synchronous = synchronous

    async def go_on(self, until: asyncio.Event) -> None:
        network = self._run.network
        await self._servers.stream(synchronous=self._synchronous)
        await asyncio.sleep(1)
        if not self._synchronous:
            for link in self._servers.replication.links:
                link.hold()
        await self._run.chaos.database.execute("create table last ()")
        await asyncio.sleep(0.5)
        network.server_port = port_of(self._servers.standby)
        await self._servers.promote()
        for link in list(network.links):
            link.cut()
        self.done["fail-over"] += 1
        await until.wait()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("synchronous", [True, False], ids=["all WAL", "lost WAL"])
async def test_a_standby_takes_over(tmp_path: Path, synchronous: bool) -> None:
    async with pair() as servers:

        def harm(run: Run) -> FailOver:
            return FailOver(run, servers, synchronous=synchronous)

        async with a_round(servers.primary, tmp_path, 1, harm, moves=True) as run:
            run.limit = 5.0  # of an execution whose resolution is lost, nothing comes
            await run.live(SECONDS)
            violations = await run.judge()
            assert await run.chaos.database.fetchval(KEPT) is synchronous
    assert run.faults.done == {"fail-over": 1}
    if not synchronous:
        violations = [each for each in violations if each.promise in INSIDE]
    if violations:
        pytest.fail(told(run, violations))
