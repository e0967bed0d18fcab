"""Real runner processes over one real database, for the behaviour suite.

Processes are started once for many tests and kept: each test names its entities anew, and what it
killed, added or froze is made good before the next one.
"""

import random
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from engine import (
    Client,
    Entity,
    EntityAddress,
    EntityId,
    EntityType,
    RunnerId,
    Settings,
    ShardId,
)
from engine.cluster.assignment import Candidate, assign
from engine.core.ids import shard_of
from engine.storage.queries import Queries
from tests.chaos.cluster import Cluster, Process, cluster
from tests.cli.terminal import Ended, do
from tests.cluster.cast import TABLES
from tests.cluster.hostility import Hostility
from tests.eventually import eventually

SHORT: dict[str, object] = {
    "shards_per_group": 30,
    "heartbeat_interval": 0.5,
    "time_to_live": 8,
    "poll_interval": 1,
    "poll_interval_degraded": 0.05,
    "grace_period": 5,
    "handover_limit": 1,
    "weight": 0.01,
}
"""Settings under which a test takes little time."""
GREEDY = 1000
"""The weight of a runner that is to own all shards, as good as certainly."""


@dataclass(slots=True, kw_only=True)
class Live:
    """So many runners in processes of their own, and a client in this one."""

    size: int
    hostility: Hostility
    processes: Cluster
    client: Client
    settings: Settings
    _names: "count[int]" = field(default_factory=count)

    @property
    def database(self) -> "asyncpg.Pool[Any]":
        return self.processes.database

    @property
    def runners(self) -> list[Process]:
        return self.processes.runners

    @property
    def shards(self) -> int:
        """How many shards a group has."""
        return self.processes.shards

    def name(self, word: str = "e") -> str:
        """An id that no other test uses."""
        return f"{word}-{next(self._names)}"

    def names(self, number: int, word: str = "e") -> list[str]:
        return [self.name(word) for _ in range(number)]

    @asynccontextmanager
    async def another_client(self) -> AsyncIterator[Client]:
        """One more, with connections and a channel of its own."""
        async with Client(self.settings) as client:
            yield client

    async def send(
        self, entity: type[Entity], id: str, tag: str, payload: str, **more: object
    ) -> Any:
        """Let a runner send an envelope as it is, each byte of its payload a character: the kind
        of its exit, and the value or the error."""
        envelope = {"type": entity.name, "entity_id": id, "tag": tag, "payload": payload, **more}
        return await random.choice(self.runners).ask("send", **envelope)

    async def interrupt(self, entity: type[Entity], id: str, request_id: int) -> None:
        """Let a runner interrupt a request to the entity."""
        target = {"type": entity.name, "entity_id": id, "request_id": request_id}
        await random.choice(self.runners).ask("interrupt", **target)

    async def exit_of(self, request_id: int) -> Any:
        """How a request has ended, as a runner is told: the kind, and the value or the error."""
        return await random.choice(self.runners).ask("exit_of", request_id=request_id)

    async def outlast(self, *arguments: str) -> Ended:
        """Run a command of the command line; its standard output is JSON."""
        return await do(*arguments, dsn=self.settings.dsn)

    async def notes(self, who: str) -> list[str]:
        """What was noted under this name, in order."""
        return [what for _, what in await self.notes_by_process(who)]

    async def notes_by_process(self, who: str) -> list[tuple[int, str]]:
        """The same with the processes that noted it."""
        query = "select pid, what from notes where who = $1 order by nth"
        return [(row["pid"], row["what"]) for row in await self.database.fetch(query, who)]

    async def noted(self, who: str, number: int) -> list[str]:
        """The notes, as soon as there are so many."""

        async def enough() -> list[str]:
            notes = await self.notes(who)
            assert len(notes) >= number, notes
            return notes

        return await eventually(enough, timeout=30)

    async def requests(self, entity_id: str) -> list[int]:
        """The ids of the requests that were stored for the entity, in order."""
        query = "select request_id from engine.envelopes where entity_id = $1 order by 1"
        return [row["request_id"] for row in await self.database.fetch(query, entity_id)]

    async def open(self, gate: str) -> None:
        await self.database.execute("insert into gates values ($1) on conflict do nothing", gate)

    def address(self, entity: type[Entity], id: str) -> EntityAddress:
        """The entity's address, with the shard that it lives on."""
        name, entity_id = EntityType(entity.name), EntityId(id)
        shard = shard_of(entity.shard_group, self.shards, name, entity_id)
        return EntityAddress(shard, name, entity_id)

    async def greedy_runner(self, **settings: object) -> Process:
        """One more runner, which has taken all shards from the others."""
        newcomer = await self.processes.start_runner(weight=GREEDY, **settings)
        await self.settled(self.runners)
        return newcomer

    async def kill(self, *processes: Process) -> None:
        for each in processes:
            await each.kill()

    async def register(self, kind: str, name: str, **options: object) -> None:
        """Give a newcomer to all runners that do not serve it yet."""
        newcomer = {"kind": kind, "name": name, **options}
        for runner in self.runners:
            await runner.ask("register", newcomer=newcomer)

    async def owner(self, shard: ShardId) -> Process:
        """The process that owns a shard, as soon as a live one does."""

        async def found() -> Process | None:
            pid = (await self.owners(shard.group)).get(shard.number)
            return next((each for each in self.runners if each.pid == pid), None)

        owner = await eventually(found, timeout=40)
        assert owner is not None
        return owner

    async def restore(self) -> None:
        """As many runners as there should be, and each owns just its share of the shards."""
        for extra in self.runners[self.size :]:
            await extra.kill()
        await self.bury()
        while len(self.runners) < self.size:
            await self.processes.start_runner()
        await self.settled(self.runners)

    async def bury(self) -> None:
        """Sign off the processes that have ended: nobody has to wait for their time to live."""
        ended = [each.pid for each in self.processes.processes if not each.running]
        running = [each.pid for each in self.runners]
        for row in await self.database.fetch(UNBURIED, ended, running):
            await self.database.execute(LEAVE, row["id"])

    async def settled(self, runners: Collection[Process], group: str = "default") -> None:
        """These own the shards of the group, each the share that it is to have for good."""

        async def as_assigned() -> bool:
            if crashes := self.processes.crashes():
                raise RuntimeError("\n".join(crashes))
            assigned = await self.assigned(runners, group)
            return bool(assigned) and await self.owners(group) == assigned

        await eventually(as_assigned, timeout=40)

    async def owners(self, group: str = "default") -> dict[int, int]:
        """The pid of the process that owns each shard that is owned."""
        rows = await self.database.fetch(OWNERS, group)
        return {row["shard"]: row["pid"] for row in rows}

    async def assigned(
        self, runners: Collection[Process], group: str = "default"
    ) -> dict[int, int]:
        """Which of these processes each shard ought to belong to; nothing before all serve."""
        pids = [runner.pid for runner in runners]
        rows = await self.database.fetch(LIVE, pids)
        if len(rows) < len(pids):
            return {}
        runner_of = {RunnerId(row["id"]): row["pid"] for row in rows}
        shards = [ShardId(group, number) for number in range(1, self.shards + 1)]
        candidates = [Candidate(id=RunnerId(row["id"]), weight=row["weight"]) for row in rows]
        found = assign(shards, candidates)
        return {shard.number: runner_of[owner] for shard, owner in found.items()}


OWNERS = """
    select s.shard, r.pid from engine.shards s join engine.shard_groups g using (group_id)
    join engine.runners r on r.id = s.runner_id where g.name = $1
"""
LIVE = """
    select id, pid, weight from engine.runners
    where pid = any($1) and died_at is null and not draining
"""

UNBURIED = """
    select id from engine.runners where pid = any($1) and pid <> all($2) and died_at is null
"""
LEAVE = Queries("engine")["leave"]

NewDatabase = Callable[[], AbstractContextManager[str]]


class LiveClusters:
    """The cluster of one size and hostility: started when it is first needed, and again after a
    test has failed on it, on a database that nothing was left in."""

    def __init__(
        self, *, size: int, hostility: Hostility, new_database: NewDatabase, logs: Path
    ) -> None:
        self._size = size
        self._hostility = hostility
        self._new_database = new_database
        self._logs = logs
        self._stack = AsyncExitStack()
        self._live: Live | None = None

    async def take(self) -> Live:
        if self._live is None:
            self._live = await self._start()
        await self._live.restore()
        return self._live

    async def close(self) -> None:
        self._live = None
        await self._stack.aclose()

    async def _start(self) -> Live:
        async with AsyncExitStack() as stack:
            dsn = stack.enter_context(self._new_database())
            chosen = {
                name: value
                for name, value in (SHORT | dict(self._hostility.settings)).items()
                if name in Settings.model_fields
            }
            processes = await stack.enter_async_context(
                cluster(
                    dsn,
                    self._logs,
                    app="tests.cluster.app",
                    tables=TABLES,
                    variables=self._hostility.variables,
                    forked=True,
                    **chosen,
                )
            )
            settings = Settings(dsn=dsn, **in_process(chosen))
            client = await stack.enter_async_context(Client(settings))
            self._stack = stack.pop_all()
        return Live(
            size=self._size,
            hostility=self._hostility,
            processes=processes,
            client=client,
            settings=settings,
        )


def in_process(settings: dict[str, object]) -> dict[str, Any]:
    """Settings as arguments: durations are not seconds there."""
    fields = Settings.model_fields
    return {
        name: timedelta(seconds=float(str(value)))
        if fields[name].annotation is timedelta
        else value
        for name, value in settings.items()
    }
