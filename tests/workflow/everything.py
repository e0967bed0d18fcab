"""One workflow that uses everything at once, and dies wherever it is told to.

``tests/workflow/test_kill_matrix.py`` kills its runner at each of its awaits, and
``tests/chaos/test_kill_matrix.py`` its process. A *point* is a place to die at: before and after
each await of a body, and around each effect.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeVar

import pydantic

from engine import (
    ActivityGroup,
    Client,
    Deferred,
    EngineError,
    Entity,
    Queue,
    RetryPolicy,
    State,
    Transaction,
    Workflow,
    activity,
    query,
    rpc,
    signal,
    transaction,
    update,
)

TABLES = """
    create table recorded (execution text not null, step text not null);
    create table noted (
        nth bigint generated always as identity,
        execution text not null, step text not null, key text not null, value text not null);
"""
"""What steps leave behind. No constraint on purpose: what happens twice must show."""

SOON = RetryPolicy(attempts=3, initial=timedelta(milliseconds=1), jitter=0)
LARGE = 300_000
T = TypeVar("T")


class Job(pydantic.BaseModel):
    id: str
    how: Literal["succeed", "fail", "interrupt"] = "succeed"
    pause: timedelta = timedelta(milliseconds=10)
    part: int = 1
    carried: list[str] = []
    draws: list[str] = []


@pydantic.dataclasses.dataclass
class Declined(Exception):
    code: int


@dataclass(frozen=True, slots=True)
class Note:
    """An effect outside: which step of which execution had it, under which idempotency key."""

    execution: str
    step: str
    key: str
    value: str


class Outside:
    """The world: what was done to it, and when it is to end."""

    def __init__(self) -> None:
        self.notes: list[Note] = []
        self.noted = asyncio.Event()
        self.client: Client | None = None
        self.crash: Callable[[], None] = lambda: None
        self.crash_at: int | None = None
        self.crash_seen = asyncio.Event()
        self.points: list[str] = []
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()

    def begin(self, crash_at: int | None) -> None:
        """Count anew, and crash at that point."""
        self.points = []
        self.crash_at = crash_at
        self.crash_seen.clear()

    @property
    def crashed(self) -> str | None:
        """Where."""
        if self.crash_at is None or len(self.points) < self.crash_at:
            return None
        return self.points[self.crash_at - 1]

    def point(self, where: str) -> None:
        self.points.append(where)
        if len(self.points) == self.crash_at:
            self.crash()
            self.crash_seen.set()

    async def write(self, note: Note) -> None:
        self.notes.append(note)
        self.noted.set()

    async def value_of(self, execution: str, step: str) -> str:
        """What an effect of the execution has left, once it is there."""
        while True:
            self.noted.clear()
            for note in await self.notes_of(execution):
                if note.step == step:
                    return note.value
            await self.noted.wait()

    async def notes_of(self, execution: str) -> list[Note]:
        return [each for each in self.notes if each.execution == execution]

    async def effect(self, step: ActivityGroup, what: str, value: str = "") -> None:
        self.point(f"before the effect of {what}")
        await self.note(step, what, value)
        self.point(f"after the effect of {what}")

    async def note(self, step: ActivityGroup, what: str, value: str = "") -> None:
        await self.write(Note(step.execution_id, what, step.idempotency_key, value))


class Stock(Entity):
    """Holds, one for each who asks, however often."""

    holds = State(list[str])

    def __init__(self, outside: Outside) -> None:
        self.outside = outside

    @rpc
    async def reserve(self, who: str) -> str:
        self.outside.point("in Stock.reserve")
        self.holds.append(f"hold of {who}")
        return self.holds[-1]

    @rpc
    async def release(self, hold: str) -> None:
        self.outside.point("in Stock.release")
        self.holds.remove(hold)

    @rpc(persisted=False)
    async def held(self) -> list[str]:
        self.outside.point("in Stock.held")
        return self.holds

    @rpc(readonly=True)
    async def kept(self) -> list[str]:
        return self.holds


class Desk(Queue[str, str]):
    concurrency = 1

    def __init__(self, outside: Outside) -> None:
        self.outside = outside

    async def process(self, item: str) -> str:
        self.outside.point("before the effect of the desk")
        await self.outside.write(Note(item, "desk", self.idempotency_key, ""))
        self.outside.point("after the effect of the desk")
        return "stamped"


class Watch(Workflow[str, str]):
    """A child that waits to be stopped."""

    async def execute(self, request: str) -> str:
        self.stopped = False
        await self.wait_until(lambda: self.stopped)
        return f"{request} stopped"

    @signal
    def stop(self) -> None:
        self.stopped = True


class Acts(ActivityGroup):
    """Steps that the parent and its child have in common."""

    outside: Outside

    async def at(self, awaitable: Awaitable[T], where: str) -> T:
        """Await, with a place to die before and one after."""
        self.outside.point(f"before {where}")
        result = await awaitable
        self.outside.point(f"after {where}")
        return result

    @activity
    async def work(self, what: str) -> str:
        await self.outside.effect(self, what)
        return f"{what} done"

    @activity
    async def never(self, what: str) -> str:
        self.outside.point(f"in {what}")
        await self.outside.note(self, what)
        await asyncio.Event().wait()
        return "unreachable"


class Part(Acts, Workflow[timedelta, str]):
    def __init__(self, outside: Outside) -> None:
        self.outside = outside

    async def execute(self, request: timedelta) -> str:
        await self.at(self.sleep(request), "the sleep of the child")
        return await self.at(self.work("part"), "the step of the child")


class Everything(Acts, Workflow[Job, list[str]]):
    raises = (Declined,)
    go = Deferred(str)
    never_given = Deferred(str)

    def __init__(self, outside: Outside) -> None:
        self.outside = outside

    @classmethod
    def key(cls, request: Job) -> str:
        return request.id

    async def execute(self, request: Job) -> list[str]:
        self.heard, self.added = list[str](), list[int]()
        if request.part == 1:
            draws = [f"{self.random().random()}", str(self.uuid()), self.now().isoformat()]
            said = await self.first(request, draws)
            following = {"part": 2, "carried": said, "draws": draws}
            return await self.continue_as_new(request.model_copy(update=following))
        return await self.second(request)

    async def first(self, request: Job, draws: list[str]) -> list[str]:
        await self.at(self.draw(draws), "draw")
        said = [await self.at(self.entity(Stock, request.id).reserve(request.id), "reserve")]
        said.append(await self.at(self.flaky(), "flaky"))
        await self.at(self.record("first"), "record")
        said.append(hashlib.sha256((await self.at(self.large(), "large")).encode()).hexdigest())
        said.append(await self.at(self.run_child(Part, request.pause), "run_child"))
        watch = self.start_child(Watch, "watch", key=f"watch {request.id}")
        await self.at(watch, "start_child")
        await self.at(self.sleep(request.pause), "sleep")
        said.append(await self.race())
        several = asyncio.gather(*(self.work(f"gathered {n}") for n in range(3)))
        said += await self.at(several, "gather")
        try:
            await self.at(self.decline(), "decline")
        except Declined as error:
            said.append(f"declined with {error.code}")
        await self.too_late(request.pause)
        return said

    async def race(self) -> str:
        """The first of two; the other is cancelled."""
        quick = asyncio.ensure_future(self.work("quick"))
        slow = asyncio.ensure_future(self.never("slow"))
        race = asyncio.wait([quick, slow], return_when=asyncio.FIRST_COMPLETED)
        await self.at(race, "race")
        slow.cancel()
        await self.at(asyncio.wait([slow]), "the loser")
        return f"{quick.result()}, slow cancelled: {slow.cancelled()}"

    async def too_late(self, pause: timedelta) -> None:
        try:
            async with asyncio.timeout(pause.total_seconds()):
                await self.at(self.never("late"), "late")
        except TimeoutError:
            await self.at(self.work("caught"), "caught")
        finally:
            await self.at(asyncio.shield(self.work("cleanup")), "cleanup")

    async def second(self, request: Job) -> list[str]:
        stock = self.entity(Stock, request.id)
        self.compensate(self.undo, "second")
        await self.at(self.record("second"), "record")
        self.compensate(stock.release, request.carried[0])
        key = f"abandoned {request.id}"
        child = self.start_child(Watch, "abandoned", key=key, on_parent_close="abandon")
        abandoned = await self.at(child, "start_child")
        await self.at(self.ask("deferred"), "ask")
        said = [await self.at(self.go.wait(), "deferred")]
        await self.at(self.ask("signals"), "ask")
        await self.at(self.wait_until(lambda: len(self.heard) == 2), "signals")
        await self.at(self.ask("update"), "ask")
        await self.at(self.wait_until(lambda: bool(self.added)), "update")
        said.append(await self.at(self.pay(), "pay"))
        await self.at(self.execution(Watch, key).signal(Watch.stop), "signal")
        said.append(await self.at(abandoned.join(), "join"))
        if self.patched("stamp"):
            said.append(await self.at(self.submit(Desk, request.id), "submit"))
        self.set_attributes({"stage": "stamped"})
        said.append(await self.at(self.look(request.id), "look"))
        match request.how:
            case "fail":
                raise Declined(8)
            case "interrupt":
                self.heard.append("interrupt me")
                await self.at(self.never_given.wait(), "the interrupt")
            case "succeed":
                pass
        return [*request.carried, *request.draws, *said, *self.heard, *map(str, self.added)]

    @signal
    def hear(self, word: str) -> None:
        self.heard.append(word)

    @update
    async def add(self, number: int) -> int:
        await self.at(self.work(f"add {number}"), "the step of the update")
        self.added.append(number)
        return sum(self.added)

    @add.validator
    def is_positive(self, number: int) -> None:
        if number < 0:
            raise ValueError("not below zero")

    @query
    def state(self) -> list[str]:
        self.outside.point("in the query")
        return self.heard

    @query
    def last(self) -> str:
        return self.heard[-1]

    @activity
    async def draw(self, draws: list[str]) -> list[str]:
        await self.outside.effect(self, "draw", " ".join(draws))
        return draws

    @activity(retry=SOON, heartbeat_timeout=timedelta(minutes=1))
    async def flaky(self) -> str:
        await self.outside.effect(self, "flaky")
        before = self.heartbeat_details
        self.heartbeat({"attempt": self.attempt})
        if self.attempt < 3:
            raise ConnectionError(f"attempt {self.attempt}")
        return f"flaky after {before}"

    @transaction
    async def record(self, tx: Transaction, step: str) -> None:
        self.outside.point(f"before the insert of {step}")
        await tx.execute("insert into recorded values ($1, $2)", self.execution_id, step)
        self.outside.point(f"after the insert of {step}")

    @activity
    def large(self) -> str:
        effect = self.outside.effect(self, "large")
        asyncio.run_coroutine_threadsafe(effect, self.outside.loop).result()
        return "".join(str(n) for n in range(LARGE // 6))

    @activity(retry=RetryPolicy(give_up_on=(Declined,)))
    async def decline(self) -> None:
        await self.outside.effect(self, "decline")
        raise Declined(7)

    @activity
    async def ask(self, what: str) -> None:
        await self.outside.effect(self, f"ask {what}")

    @activity
    async def pay(self) -> str:
        await self.outside.effect(self, "pay", self.token)
        self.complete_later()

    @activity
    async def look(self, who: str) -> str:
        """A volatile call, which may be lost with the runner."""
        await self.outside.effect(self, "look")
        assert self.outside.client is not None
        while True:
            try:
                return str(await self.outside.client.entity(Stock, who).held())
            except EngineError:
                await asyncio.sleep(0.01)

    @activity
    async def undo(self, step: str) -> None:
        await self.outside.effect(self, f"undo {step}")
