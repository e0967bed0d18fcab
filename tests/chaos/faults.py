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
from tests.chaos import strangers
from tests.chaos.cluster import Cluster, Process
from tests.chaos.proxy import COMMIT, STATEMENT, Link, Proxy
from tests.chaos.server import Server
from tests.chaos.strangers import TERMINATE
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
DEPLOYED = "CHAOS_DEPLOYED"
ROLES = ["lane-0", "lane-1", "lane%", "listener", "user", "pool", "post", "registry", "%"]


class Faults:
    """``dsn`` leads to the run's database on the server itself."""

    def __init__(
        self,
        chaos: Cluster,
        network: Proxy,
        *,
        seed: int,
        time_to_live: float,
        dsn: str,
        server: Server,
        replace: Callable[[Process], Awaitable[object]],
    ) -> None:
        self.done: Counter[str] = Counter()
        self.ended: set[Process] = set()
        """Processes that were killed or told to leave."""
        self._chaos = chaos
        self._network = network
        self._chance = random.Random(seed)
        self._time_to_live = time_to_live
        self._dsn = dsn
        self._server = server
        self._replace = replace
        self._suffering: set[Process] = set()
        self._server_lock = asyncio.Lock()
        self._deploying = asyncio.Lock()
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
            "take all connections": (self._take_connections, 1),
            "hold locks": (self._hold_locks, 4),
            "let statements fail": (self._fail_statements, 4),
            "change a setting": (self._change_setting, 2),
            "stop notifications": (self._stop_notifications, 2),
            "step a clock": (self._step_clock, 3),
            "deploy": (self._deploy, 1),
        }
        if why_not := server.disk.why_not:
            log.warning("the disk will never be full: %s", why_not)
        else:
            self._faults["fill the disk"] = self._fill_disk, 1

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
        if self.done["deploy"] and self._chaos.variables[DEPLOYED] == "old":
            await self._deploy()  # what the new version has begun is for nobody else

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
            await self._exchange(victim)
        else:
            self._suffering.discard(victim)

    async def _exchange(self, victim: Process) -> None:
        self.ended.add(victim)
        victim.send(signal.SIGTERM)
        await self._replace(victim)
        await eventually(lambda: not victim.running, timeout=LEAVES_WITHIN)

    async def _deploy(self) -> None:
        """Runners are exchanged one after the other: now the other version of a workflow is what
        they have. Whoever starts meanwhile has it as well."""
        async with self._deploying:
            variables = self._chaos.variables
            variables[DEPLOYED] = "old" if variables[DEPLOYED] == "new" else "new"
            while stale := [
                each
                for each in self._chaos.runners
                if each.variables != variables and each not in self.ended
            ]:
                if free := [each for each in stale if each not in self._suffering]:
                    self._suffering.add(free[0])
                    await self._exchange(free[0])
                await asyncio.sleep(0.05)

    async def _freeze(self) -> None:
        times = self._chance.choice([0.5, 1, 3])
        if (victim := self._victim()) is not None:
            victim.freeze()
            await asyncio.sleep(times * self._time_to_live)
            victim.thaw()
            self._suffering.discard(victim)

    async def _step_clock(self) -> None:
        """Of one process, by hours; and back again."""
        seconds = self._chance.choice([-26, -1, 1, 26]) * 3600
        if (victim := self._victim()) is None:
            return
        for step in (seconds, -seconds):
            # One that has not begun to serve answers later, or ends.
            with suppress(AssertionError, ConnectionError):
                await victim.ask("step", seconds=step, within=10)
            await asyncio.sleep(self._chance.choice([0.5, 1]) * self._time_to_live)
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
            self._server.kill(number)
            await asyncio.sleep(self._chance.choice([0, 1, 2 * self._time_to_live]))
            await asyncio.to_thread(self._server.start)

    async def _fill_disk(self) -> None:
        """The server may end for it, and cannot be started before there is room."""
        async with self._server_lock:
            self._server.disk.fill()
            try:
                await self._a_while()
            finally:
                self._server.disk.free()
            await asyncio.to_thread(self._server.start)

    # --- what others do on the server -------------------------------------------------------------

    async def _a_while(self) -> None:
        await asyncio.sleep(self._chance.choice([0.2, 0.5, 1.5]) * self._time_to_live)

    async def _take_connections(self) -> None:
        """Those of some sessions too, which are ended."""
        async with strangers.connections_taken(self._dsn):
            await self._end_sessions()
            await self._a_while()

    async def _hold_locks(self) -> None:
        """Of the engine, or of what transactions write: then these use up their pool."""
        tables = ["effects", *(f"engine.{name}" for name in strangers.TABLES)]
        table, lock = self._chance.choice(tables), self._chance.choice(strangers.LOCKS)
        async with strangers.locked(self._dsn, table, lock):
            await self._a_while()

    async def _fail_statements(self) -> None:
        code, share = self._chance.choice(strangers.MISHAPS), self._chance.choice([0.1, 0.5, 1])
        async with strangers.mishaps(self._dsn, code, share):
            await self._a_while()

    async def _change_setting(self) -> None:
        name, value = self._chance.choice(list(strangers.SETTINGS.items()))
        async with strangers.setting(self._dsn, name, value):
            await self._a_while()

    async def _stop_notifications(self) -> None:
        async with strangers.notifications_stuck(self._dsn):
            await self._a_while()

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
