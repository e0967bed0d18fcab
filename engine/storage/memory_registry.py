"""The register of runners of the in-memory database.

Opened by ``memory``, used by ``cluster.heartbeat``, perhaps on a thread and event loop of its own.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta

from engine.core.errors import StorageUnavailable
from engine.core.ids import RunnerId
from engine.storage.memory_database import MemoryDatabase
from engine.storage.protocol import Beat, RunnerLoad, RunnerRow


class MemoryRegistry:
    """See ``Registry``."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database
        self._closed = False

    async def register(self, runner: RunnerRow) -> None:
        await self._travel()
        with self._database.mutex:
            now = self._database.clock.now()
            old = self._database.runners.get(runner.id)
            self._database.runners[runner.id] = replace(
                runner,
                started_at=now if old is None else old.started_at,
                died_at=None if old is None else old.died_at,
                beat_at=now,
            )

    async def beat(self, runner: RunnerId, load: RunnerLoad | None = None) -> Beat:
        await self._travel()
        with self._database.mutex:
            runners, now = self._database.runners, self._database.clock.now()
            me = runners.get(runner)
            alive = me is not None and me.died_at is None
            if me is not None and alive:
                runners[runner] = replace(me, beat_at=now, load=load)
            for id, each in runners.items():
                if each.beat_at is None and each.died_at is None:
                    runners[id] = replace(each, beat_at=now)
            return Beat(
                alive=alive,
                now=now,
                server_started=self._database.started_at,
                runners=[each for each in runners.values() if each.died_at is None],
                post=self._database.post.waits(runner),
                pauses=dict(self._database.pauses),
            )

    async def drain(self, runner: RunnerId) -> None:
        await self._travel()
        with self._database.mutex:
            me = self._database.runners.get(runner)
            if me is not None:
                self._database.runners[runner] = replace(me, draining=True)

    async def leave(self, runner: RunnerId) -> None:
        await self._travel()
        with self._database.mutex:
            me = self._database.runners.get(runner)
            if me is not None and me.died_at is None:
                now = self._database.clock.now()
                self._database.runners[runner] = replace(me, died_at=now)
                self._database.disown(runner, in_good_order=True)

    async def bury(self, runner: RunnerId, *, by: RunnerId, ttl: timedelta) -> bool:
        await self._travel()
        with self._database.mutex:
            runners, now = self._database.runners, self._database.clock.now()
            peer, judge = runners.get(runner), runners.get(by)
            if peer is None or peer.died_at is not None or peer.beat_at is None:
                return False
            if judge is None or judge.died_at is not None or now - peer.beat_at <= ttl:
                return False
            runners[runner] = replace(peer, died_at=now)
            self._database.unburied.add(runner)
            return True

    async def unburied(self) -> Sequence[RunnerId]:
        await self._travel()
        return sorted(self._database.unburied)

    async def end_sessions(self, runner: RunnerId) -> int:
        """Of a runner that lives, none is ended."""
        await self._travel()
        with self._database.mutex:
            row = self._database.runners.get(runner)
            if row is not None and row.died_at is None:
                return sum(session.runner == runner for session in self._database.sessions)
            self._database.end_sessions(runner)
            self._database.unburied.discard(runner)
            self._database.disown(runner, in_good_order=False)
            return 0

    async def close(self) -> None:
        await asyncio.sleep(0)
        self._closed = True

    async def _travel(self) -> None:
        await asyncio.sleep(0)
        if self._closed:
            raise StorageUnavailable("the register is closed; open another")
        self._database.check_available()
