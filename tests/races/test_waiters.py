"""Whoever waits for a result, against whoever commits it or deletes it: G3, G4, G10.

Nobody polls here: the answer has to come by what was registered, read and rung.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import urlsplit

import pytest

from engine.cluster import replies
from engine.cluster.replies import ReplyBoard
from engine.core.errors import NotFound
from engine.core.ids import Snowflake
from engine.core.reply import Exit, Success
from engine.core.status import Status
from engine.storage import doorbell
from engine.storage.protocol import Commit, ExecutionUpdate, LaneSession
from engine.storage.session import Session
from tests.chaos.proxy import Proxy, proxy
from tests.eventually import eventually
from tests.gates import Gates, Held, Race, ServerGates, Side, every_order
from tests.storage.world import (
    NOW,
    ONE,
    Ear,
    Process,
    World,
    memory_world,
    message,
    postgres_world,
    save_one,
    start,
    success,
    sweep_of,
)

FAR = datetime(2080, 1, 1, tzinfo=UTC)
HOURS = timedelta(hours=10)


class Answer:
    """The exit of a request, or an error; ``waits`` for it."""

    waits: "asyncio.Task[Exit]"

    def __init__(self, board: ReplyBoard, request: Snowflake) -> None:
        self._board = board
        self._request = request

    def ask(self) -> None:
        self.waits = asyncio.get_running_loop().create_task(self._board.wait(self._request))


class Caller(Ear):
    """A process that waits for replies, and only reads what it is told to."""

    def __init__(self, process: Process, gates: Gates) -> None:
        super().__init__()
        self.storage = Held(
            process.storage, gates, {"watch": "registers", "replies": "reads", "stored": "looks"}
        )
        self._board: ReplyBoard | None = None
        process.storage.doorbell.listen(self)

    @property
    def sessions(self) -> str:
        return f"outlast:{self.storage.identity}:%"

    @asynccontextmanager
    async def waiting(self, request: Snowflake) -> AsyncIterator["Answer"]:
        """What comes for a request to a board of its own, once it is asked for."""
        self.storage.calls.clear()
        async with ReplyBoard(storage=self.storage, poll=lambda: HOURS) as board:  # type: ignore[arg-type]
            self._board = board
            answer = Answer(board, request)
            try:
                yield answer
            finally:
                answer.waits.cancel()

    async def read(self, times: int = 1) -> None:
        """Until it has registered and read so often."""

        def done() -> bool:
            calls = self.storage.calls
            return min(calls.count("watch"), calls.count("replies")) >= times

        await eventually(done, every=0.001)

    def replies_rung(self, requests: Sequence[Snowflake]) -> None:
        if self._board is not None:
            self._board.rung(requests)

    def doorbell_restored(self) -> None:
        super().doorbell_restored()
        if self._board is not None:
            self._board.restored()


Ring = Callable[[Snowflake], Awaitable[object]]


def joining(process: Process, lane: LaneSession, caller: Caller, gates: Gates, ring: Ring) -> Race:
    """Somebody who waits, and the owner that ends a request."""

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        id = (await save_one(process, message())).envelope.request_id

        async def finish() -> None:
            await gates("finishes")
            await lane.flush([Commit(shard=ONE, replies=[success(id)])])
            await gates("rings")
            await ring(id)

        async with caller.waiting(id) as answer:

            async def join() -> None:
                answer.ask()
                await caller.read()

            yield {"join": join, "finish": finish}

            assert await asyncio.wait_for(answer.waits, 5) == Success(b"1")

    return race


async def test_a_join_against_a_finish_in_memory() -> None:
    """G4: in whichever order they come, who waits has the exit."""
    gates = Gates()
    async with memory_world() as world:
        process, lane = await world.runner_with_lane()
        caller = Caller(await world.process(register=False), gates)
        await lane.acquire([ONE])

        async def ring(id: Snowflake) -> None:
            process.storage.doorbell.ring_replies([id])
            await asyncio.sleep(0)

        sides = {"join": ("registers", "reads"), "finish": ("finishes", "rings")}
        race = joining(process, lane, caller, gates, ring)
        assert len(await every_order(gates, sides, race)) == 6


async def test_a_join_against_a_finish(postgres: World, gates: ServerGates) -> None:
    """G4: as in memory, and within each of their statements."""
    process, lane = await postgres.runner_with_lane()
    caller = Caller(await postgres.process(register=False), gates)
    await lane.acquire([ONE])
    await eventually(lambda: caller.restored)
    finisher = f"outlast:{process.runner}:%"
    await gates.hold("writes", "replies", of=finisher)
    await gates.hold("commits", "replies", of=finisher, commit=True)
    await gates.hold("has registered", "waiters", of=caller.sessions, commit=True)

    sides = {
        "join": ("registers", "has registered", "reads"),
        "finish": ("writes", "commits", "rings"),
    }
    race = joining(process, lane, caller, gates, ringing(process))
    assert len(await every_order(gates, sides, race)) == 20
    await lane.close()


def ringing(process: Process) -> Ring:
    """The doorbell, whose statement is over when this returns."""
    bell = process.storage.doorbell
    send, sent = bell._send, asyncio.Event()  # type: ignore[attr-defined]

    async def sending(session: Session) -> None:
        await send(session)
        sent.set()

    bell._send = sending  # type: ignore[attr-defined]

    async def ring(id: Snowflake) -> None:
        sent.clear()
        bell.ring_replies([id])
        await sent.wait()

    return ring


class Door(Proxy):
    """Who comes anew is held."""

    def __init__(self, server_port: int, gates: Gates) -> None:
        super().__init__(server_port)
        self._gates = gates

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._gates("listens")
        await super().serve(reader, writer)


async def test_a_listener_that_is_lost_against_a_finish(
    postgres: World, gates: ServerGates, dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G4, G10: what was rung while nobody heard is read when somebody listens again."""
    monkeypatch.setattr(doorbell, "_BACKOFF", 0.001)  # as after a listener that has served for long
    monkeypatch.setattr(doorbell, "_SERVED", 0.0)
    process, lane = await postgres.runner_with_lane()
    await lane.acquire([ONE])
    parts = urlsplit(dsn)
    async with proxy(parts.port or 5432, partial(Door, gates=gates)) as (door, port):
        behind = parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}").geturl()
        async with postgres_world(behind) as world:
            listener = await world.process(register=False)
            others = set(door.links)
            caller = Caller(listener, gates)
            await eventually(lambda: caller.restored)
            ring = ringing(process)

            @asynccontextmanager
            async def race() -> AsyncIterator[Mapping[str, Side]]:
                id = (await save_one(process, message())).envelope.request_id
                (link,) = door.links - others
                restored = caller.restored

                async def finish() -> None:
                    await gates("finishes")
                    await lane.flush([Commit(shard=ONE, replies=[success(id)])])
                    await gates("rings")
                    await ring(id)

                async with caller.waiting(id) as answer:
                    answer.ask()
                    await caller.read()

                    async def lose() -> None:
                        await gates("loses")
                        link.cut()
                        await eventually(lambda: caller.restored > restored, every=0.001)
                        if not answer.waits.done():
                            await caller.read(times=2)

                    yield {"listener": lose, "finish": finish}

                    assert await asyncio.wait_for(answer.waits, 5) == Success(b"1")

            sides = {"listener": ("loses", "listens", "registers"), "finish": ("finishes", "rings")}
            orders = await every_order(gates, sides, race)
            assert len(orders) == 10, orders
    await lane.close()


async def test_a_join_against_a_prune(
    postgres: World, gates: ServerGates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """G4: who waits for what has ended has its exit, or is told that it is gone."""
    monkeypatch.setattr(replies, "_LOOK_AFTER", 0.0)
    process, lane = await postgres.runner_with_lane()
    caller = Caller(await postgres.process(register=False), gates)
    await lane.acquire([ONE])
    await eventually(lambda: caller.restored)
    pruner = f"outlast:{process.runner}:%"
    await gates.hold("deletes", "replies", of=pruner)
    await gates.hold("has deleted", "replies", of=pruner, commit=True)
    found: list[bool] = []

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        id = await ended(process, lane)

        async def prune() -> None:
            await gates("prunes")
            assert await process.storage.prune([id], before=FAR) == [id]

        async with caller.waiting(id) as answer:

            async def join() -> None:
                answer.ask()
                await asyncio.wait([answer.waits])

            yield {"join": join, "prune": prune}

            if error := answer.waits.exception():
                assert isinstance(error, NotFound)
            else:
                assert answer.waits.result() == Success(b"1")
            found.append(error is None)

    sides = {
        "join": ("registers", "reads", "looks"),
        "prune": ("prunes", "deletes", "has deleted"),
    }
    orders = await every_order(gates, sides, race)
    assert found == [order.index("reads") < order.index("has deleted") for order in orders]
    await lane.close()


async def ended(process: Process, lane: LaneSession) -> Snowflake:
    """An execution that has succeeded, with nothing in the inbox."""
    request = await save_one(process, start("o"))
    id = request.envelope.request_id
    (row,) = (await sweep_of(lane)).rows
    update = ExecutionUpdate(request_id=id, run=1, status=Status.SUCCEEDED, finished_at=NOW)
    await lane.flush(
        [Commit(shard=ONE, replies=[success(id)], settled=[row.seq], execution=update)]
    )
    return id
