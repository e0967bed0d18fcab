"""What is done to processes, sessions, server and network of a chaos run, as its seed says.

Each fault heals by itself, and several are under way at once.
"""

import asyncio
import logging
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress

import asyncpg

from engine.storage.outage import LOST
from tests.chaos.cluster import Cluster, Process
from tests.chaos.proxy import COMMIT, STATEMENT, Link, Proxy
from tests.chaos.test_backends import TERMINATE
from tests.eventually import eventually

log = logging.getLogger(__name__)

PAUSE = 2.5
"""The most seconds from the beginning of one fault to that of the next."""
LEAVES_WITHIN = 60
"""Seconds for a runner that is told to go, whatever else happens to it."""
BACKENDS = """
    select pid from pg_stat_activity
    where application_name like 'outlast:%' and datname = current_database()
"""
ROLES = ["lane-0", "lane-1", "lane%", "listener", "user", "pool", "post", "registry", "%"]


class Faults:
    """``server`` gives the postmaster's id; ``restart`` starts the server after its end."""

    def __init__(
        self,
        chaos: Cluster,
        network: Proxy,
        *,
        seed: int,
        time_to_live: float,
        server: Callable[[], int],
        restart: Callable[[], Awaitable[object]],
        replace: Callable[[Process], Awaitable[object]],
    ) -> None:
        self.done: Counter[str] = Counter()
        self.ended: set[Process] = set()
        """Processes that were killed or told to leave."""
        self._chaos = chaos
        self._network = network
        self._chance = random.Random(seed)
        self._time_to_live = time_to_live
        self._server = server
        self._restart = restart
        self._replace = replace
        self._suffering: set[Process] = set()
        self._server_lock = asyncio.Lock()
        self._faults: dict[str, tuple[Callable[[], Awaitable[None]], int]] = {
            "kill": (self._kill, 3),
            "leave": (self._leave, 2),
            "freeze": (self._freeze, 4),
            "end sessions": (self._end_sessions, 5),
            "kill a backend": (self._kill_backend, 1),
            "stop the server": (self._stop_server, 1),
            "kill the server": (self._kill_server, 1),
            "cut links": (self._cut, 4),
            "hold links": (self._hold, 3),
            "slow links": (self._slow, 2),
            "lose answers": (self._lose_answers, 5),
        }

    async def go_on(self, until: asyncio.Event) -> None:
        """One fault after the other until then; returns when all have healed."""
        names = list(self._faults)
        weights = [weight for _, weight in self._faults.values()]
        async with asyncio.TaskGroup() as group:
            while not until.is_set():
                (name,) = self._chance.choices(names, weights)
                log.info("fault: %s", name)
                self.done[name] += 1
                group.create_task(self._do(self._faults[name][0]))
                with suppress(TimeoutError):
                    await asyncio.wait_for(until.wait(), self._chance.uniform(0.1, PAUSE))

    async def _do(self, fault: Callable[[], Awaitable[None]]) -> None:
        with suppress(asyncpg.PostgresError, *LOST):  # it met another fault
            await fault()

    # --- processes --------------------------------------------------------------------------------

    def _victim(self) -> Process | None:
        """A process that nothing is done to now, a runner three times of four."""
        free = [each for each in self._chaos.processes if each.running]
        free = [each for each in free if each not in self._suffering]
        runners = [each for each in free if each.name.startswith("runner")]
        if not free:
            return None
        victim = self._chance.choice(runners if runners and self._chance.random() < 0.75 else free)
        self._suffering.add(victim)
        return victim

    async def _kill(self) -> None:
        if (victim := self._victim()) is not None:
            self.ended.add(victim)
            await victim.kill()
            await self._replace(victim)

    async def _leave(self) -> None:
        """A runner is told to go; its successor comes at once."""
        if (victim := self._victim()) is None:
            return
        if victim.name.startswith("runner"):
            self.ended.add(victim)
            victim.send(signal.SIGTERM)
            await self._replace(victim)
            await eventually(lambda: not victim.running, timeout=LEAVES_WITHIN)
        else:
            self._suffering.discard(victim)

    async def _freeze(self) -> None:
        times = self._chance.choice([0.5, 1, 3])
        if (victim := self._victim()) is not None:
            victim.freeze()
            await asyncio.sleep(times * self._time_to_live)
            victim.thaw()
            self._suffering.discard(victim)

    # --- sessions and server ----------------------------------------------------------------------

    async def _end_sessions(self) -> None:
        role = self._chance.choice(ROLES)
        for _ in range(self._chance.choice([1, 1, 4])):
            await self._chaos.database.fetchval(TERMINATE, f"outlast:%:{role}")
            await asyncio.sleep(0.2)

    async def _kill_backend(self) -> None:
        """The server ends all its sessions for it, and recovers."""
        async with self._server_lock:
            pids = [row["pid"] for row in await self._chaos.database.fetch(BACKENDS)]
            if pids:
                os.kill(self._chance.choice(pids), signal.SIGKILL)
            await asyncio.sleep(0.5)

    async def _stop_server(self) -> None:
        """At once, as if it had crashed."""
        await self._end_server(signal.SIGQUIT)

    async def _kill_server(self) -> None:
        await self._end_server(signal.SIGKILL)

    async def _end_server(self, number: signal.Signals) -> None:
        async with self._server_lock:
            os.kill(self._server(), number)
            await asyncio.sleep(self._chance.choice([0, 1, 2 * self._time_to_live]))
            await self._restart()

    # --- network ----------------------------------------------------------------------------------

    def _links(self) -> list[Link]:
        """One, some or all."""
        share = self._chance.choice([0, 0.3, 1])
        links = list(self._network.links)
        return self._chance.sample(links, min(len(links), max(1, round(share * len(links)))))

    async def _cut(self) -> None:
        for link in self._links():
            link.cut()

    async def _hold(self) -> None:
        """Half open: both ends believe in a connection on which nothing comes."""
        links = self._links()
        for link in links:
            link.hold()
        await asyncio.sleep(self._chance.choice([0.5, 1, 3]) * self._time_to_live)
        ends = self._chance.random() < 0.5
        for link in links:
            if ends:
                link.cut()
            else:
                link.release()

    async def _slow(self) -> None:
        delay = self._chance.choice([0.01, 0.1])
        links = self._links()
        for link in links:
            link.delay = delay
        await asyncio.sleep(self._time_to_live)
        for link in links:
            link.delay = 0

    async def _lose_answers(self) -> None:
        """Of the statement, or the COMMIT, that comes next on these links."""
        message = self._chance.choice([STATEMENT, COMMIT])
        for link in self._links():
            link.lose_answer_of = message
