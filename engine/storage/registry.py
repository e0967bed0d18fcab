"""The register of runners, on a connection of its own: a busy lane delays no heartbeat.

From ``cluster.membership``, whose heartbeat has a thread and an event loop of its own.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta

import asyncpg

from engine.core.clock import SystemClock, monotonic
from engine.core.errors import OwnershipLost
from engine.core.ids import RunnerId
from engine.storage.connect import OUR_PLANS, Connector
from engine.storage.outage import LOST, unavailable
from engine.storage.protocol import Beat, RunnerLoad, RunnerRow
from engine.storage.records import pauses_in, runner_from
from engine.storage.session import Session

_SETTINGS = OUR_PLANS | {"lock_timeout": "2000"}


class PostgresRegistry:
    """A ``Registry`` that connects when it is asked something, and again after a loss.

    Every statement may be run twice. One that is lost is tried once more at once; then it is
    ``StorageUnavailable``, and the caller's own rhythm decides when to ask again.
    """

    def __init__(self, *, connector: Connector, runner: RunnerId, clock: SystemClock) -> None:
        self._connector = connector
        self._runner = runner
        self._clock = clock
        self._session: Session | None = None

    async def register(self, runner: RunnerRow) -> None:
        entered = await self._ask(
            "register_runner",
            runner.id,
            list(runner.groups),
            runner.weight,
            runner.host,
            runner.pid,
            runner.version,
            json.dumps(dict(runner.types)),
            runner.machine,
            runner.draining,
        )
        if not entered:
            raise OwnershipLost(
                f"runner {runner.id} has been declared dead; come back as a new one"
            )

    async def beat(self, runner: RunnerId, load: RunnerLoad | None = None) -> Beat:
        sent = monotonic()
        rows = await self._ask("beat", runner, None if load is None else json.dumps(asdict(load)))
        now = rows[0]["now"]
        self._clock.align(database=now, sent=sent, received=monotonic())
        return Beat(
            alive=rows[0]["alive"],
            now=now,
            server_started=rows[0]["server_started"],
            runners=[runner_from(row) for row in rows if row["id"] is not None],
            post=rows[0]["post"],
            pauses=pauses_in(rows[0]["pauses"]),
        )

    async def drain(self, runner: RunnerId) -> None:
        await self._ask("drain_runner", runner)

    async def leave(self, runner: RunnerId) -> None:
        await self._ask("leave", runner)

    async def bury(self, runner: RunnerId, *, by: RunnerId, ttl: timedelta) -> bool:
        return bool(await self._ask("bury", runner, by, ttl))

    async def unburied(self) -> Sequence[RunnerId]:
        return [RunnerId(row["id"]) for row in await self._ask("unburied")]

    async def end_sessions(self, runner: RunnerId) -> int:
        rows = await self._ask("end_sessions", runner)
        left = int(rows[0]["sessions"])
        if left == 0:
            # A session is listed until its transaction has ended and its locks are free.
            await self._ask("mark_buried", runner)
        return left

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            try:
                await session.close(timeout=1)
            except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                session.terminate()

    async def _ask(self, name: str, *args: object) -> Sequence[asyncpg.Record]:
        try:
            return await self._once(name, *args)
        except LOST:
            try:
                return await self._once(name, *args)
            except LOST as error:
                raise unavailable(error, self._connector.address) from error
        except asyncpg.PostgresError as error:
            if self._session is not None:
                self._session.terminate()  # its server may be a standby by now
            raise unavailable(error, self._connector.address) from error

    async def _once(self, name: str, *args: object) -> Sequence[asyncpg.Record]:
        if self._session is None or self._session.is_closed():
            self._session = await self._connector.open(self._runner, "registry", _SETTINGS)
        call, within = self._connector.queries.call(name, *args), self._connector.statement_timeout
        return await self._session.ask(*call, within=within)
