"""What the type checkers see in every shape a program takes: asserted, never cast."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, Literal, TypeVar, assert_never, assert_type

from pydantic import BaseModel
from sqlalchemy.ext.asyncio import AsyncSession

from engine import (
    ActivityGroup,
    Client,
    Cron,
    Deferred,
    Entity,
    ErrorDetails,
    Execution,
    ExecutionInfo,
    Failed,
    FireInfo,
    FireOutcome,
    Interrupted,
    JournalEvent,
    Overlap,
    Pending,
    RetryPolicy,
    Runner,
    ScheduleInfo,
    Settings,
    Status,
    Succeeded,
    Terminated,
    Transaction,
    Workflow,
    WorkflowCron,
    activity,
    rpc,
    transaction,
)


@dataclass(frozen=True)
class Page:
    number: int
    text: str


class Summary(BaseModel):
    pages: int
    words: int


class Vote(BaseModel):
    by: str
    yes: bool


def note_of(by: int, *, note: str = "") -> str:
    """Deduplication keys are computed from the arguments of the call."""
    return note


def first(words: Sequence[str]) -> str:
    return words[0]


# --- entities ----------------------------------------------------------------------------------


class Audited(Entity):
    """Handlers are inherited like any method."""

    @rpc
    async def audit(self) -> list[str]:
        return [self.entity_id]


class Counting:
    """A mixin needs no base of the engine's."""

    @rpc(key=note_of)
    async def add(self, by: int, *, note: str = "") -> int:
        return by


class Counter(Audited, Counting):
    concurrency = 0
    max_idle = timedelta(minutes=5)

    def __init__(self, start: int = 0) -> None:
        self.total = start

    @rpc(name="reset-to")
    async def reset(self, value: int | None = None) -> int | None:
        return value


# --- workflows ---------------------------------------------------------------------------------


class Notifying:
    """Steps that several workflows share."""

    @activity(retry=RetryPolicy(attempts=3, initial=timedelta(seconds=1)))
    async def notify(self, address: str, *, urgent: bool = False) -> bool:
        return urgent

    @transaction(name="log-line")
    async def log_line(self, tx: Transaction, line: str) -> int:
        row = await tx.fetchrow("select $1", line)
        return 0 if row is None else len(row)


class Scanning(ActivityGroup):
    """Steps that ask and say something about themselves."""

    @activity(heartbeat_timeout=timedelta(seconds=30), timeout=timedelta(hours=1))
    def scan(self, pages: int) -> list[Page]:
        assert_type(self.heartbeat_details, object)
        assert_type(self.cancelled, bool)
        assert_type(self.heartbeat({"page": 1}), None)
        return []

    @activity
    async def inspect(self, page: Page) -> Vote:
        assert_type(self.token, str)
        self.complete_later()


class Scans(Scanning, Workflow[int, int]):
    async def execute(self, request: int) -> int:
        pages = await self.scan(request)
        assert_type(pages, list[Page])
        assert_type(await self.inspect(pages[0]), Vote)
        return len(pages)


async def complete(client: Client, token: str) -> None:
    assert_type(await client.complete(token, Vote(by="Ada", yes=True)), bool)
    assert_type(await client.fail(token, "nobody was there"), bool)
    assert_type(await client.fail(token, ConnectionError("no route")), bool)


class Steps(Notifying, Workflow[int, Summary]):
    version = 2

    @activity
    async def read(self, number: int) -> Page:
        return Page(number, "")

    @activity
    def parse(self, page: Page, limit: int = 10) -> list[str]:
        return page.text.split()[:limit]

    @activity(timeout=timedelta(seconds=5), name="count-words", key=first)
    def count(self, words: Sequence[str]) -> int:
        return len(words)

    @activity
    async def maybe(self, found: bool) -> Page | None:
        return Page(1, "") if found else None

    @transaction(retry=RetryPolicy(attempts=2), timeout=timedelta(seconds=1))
    async def store(self, tx: Transaction, summary: Summary, *, twice: bool = False) -> str:
        session = tx.session()
        assert_type(session, AbstractAsyncContextManager[AsyncSession])
        async with session as alchemy:
            assert_type(alchemy, AsyncSession)
        return await tx.execute("select 1")

    async def execute(self, request: int) -> Summary:
        assert_type(await self.read(1), Page)
        assert_type(await self.parse(Page(1, "a b")), list[str])
        assert_type(await self.parse(page=Page(1, "a b"), limit=1), list[str])
        assert_type(await self.count(["a"]), int)
        assert_type(await self.maybe(True), Page | None)
        assert_type(await self.notify("a", urgent=True), bool)
        assert_type(await self.log_line("a"), int)
        assert_type(await self.store(Summary(pages=1, words=1), twice=True), str)
        return Summary(pages=request, words=await self.concurrently())

    async def concurrently(self) -> int:
        page, words = await asyncio.gather(self.read(1), self.parse(Page(1, "")))
        assert_type(page, Page)
        assert_type(words, list[str])
        pages = await asyncio.gather(*(self.read(number) for number in range(3)))
        assert_type(pages, list[Page])
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(self.read(2))
            counting = group.create_task(self.count(["a"]))
        assert_type(reading, asyncio.Task[Page])
        assert_type(counting.result(), int)
        async with asyncio.timeout(5):
            assert_type(await asyncio.wait_for(self.read(3), 1), Page)
        return counting.result()


class Clock(Workflow[None, datetime]):
    async def execute(self, request: None) -> datetime:
        await self.sleep(timedelta(hours=1))
        await self.sleep_until(datetime(2030, 1, 1, tzinfo=UTC))
        assert_type(self.random().random(), float)
        assert_type(str(self.uuid()), str)
        assert_type(self.execution_id, str)
        assert_type(self.suspending, bool)
        return self.now()


class Ballot(Workflow[str, Vote | None]):
    vote = Deferred(Vote)
    quorum = Deferred[int | None]()
    tags = Deferred(list[str])
    choice = Deferred[Literal["yes", "no"]]()

    async def execute(self, request: str) -> Vote | None:
        assert_type(await self.quorum.wait(), int | None)
        assert_type(await self.tags.wait(), list[str])
        assert_type(await self.choice.wait(timeout=timedelta(days=1)), Literal["yes", "no"])
        assert_type(self.vote.token(), str)
        counter = self.entity(Counter, request)
        assert_type(counter, Counter)
        assert_type(await counter.add(1, note="vote"), int)
        assert_type(await counter.audit(), list[str])
        self.compensate(counter.reset)
        self.compensate(counter.reset, value=3)
        self.compensate(self.undo, "vote", times=2)
        both = await asyncio.gather(counter.add(1), counter.reset(None))
        assert_type(both, tuple[int, int | None])
        return await self.vote.wait()

    @activity
    async def undo(self, what: str, times: int) -> None: ...


# --- a hierarchy of workflows ------------------------------------------------------------------

Item = TypeVar("Item")


class Each(Workflow[list[Item], int], Generic[Item]):
    """A workflow that leaves its request's type to its subclasses."""

    async def execute(self, request: list[Item]) -> int:
        async with asyncio.TaskGroup() as group:
            for item in request:
                group.create_task(self.one(item))
        return len(request)

    async def one(self, item: Item) -> None:
        raise NotImplementedError


class EachPage(Each[Page]):
    name = "each-page"

    async def one(self, item: Page) -> None:
        assert_type(await self.read(item.number), str)

    @activity
    async def read(self, number: int) -> str:
        return str(number)


class Stricter(Ballot):
    """A subclass inherits steps, deferreds and the types of request and result."""

    veto = Deferred(bool)


# --- crons -------------------------------------------------------------------------------------


class Nightly(Cron):
    schedule = "30 2 * * *"
    timezone = "Europe/Berlin"
    overlap = Overlap.BUFFER_ONE
    catch_up = timedelta(hours=2)
    skip_if_older_than = timedelta(minutes=30)

    async def run(self, at: datetime) -> None:
        assert_type(at, datetime)


class Weekly(WorkflowCron[int, Summary]):
    schedule = "0 0 6 * * MON"
    workflow = Steps

    def request(self, at: datetime) -> int:
        return at.day

    def key(self, at: datetime, request: int) -> str:
        return f"{at:%G-W%V}"


FIRST = datetime(2030, 1, 1, tzinfo=UTC)


async def schedules(client: Client) -> None:
    nightly = client.schedule(Nightly)
    assert_type(await nightly.describe(), ScheduleInfo)
    assert_type(await client.schedule("Weekly").fires(limit=5), list[FireInfo])
    assert_type(await client.schedule(Weekly).trigger(id="once"), FireInfo)
    assert_type(await nightly.backfill(FIRST, FIRST), int)
    await nightly.pause("not today")
    await nightly.resume()
    for info in await client.schedules():
        assert_type(info.overlap, Overlap)
    for fire in await nightly.fires():
        assert_type(fire.outcome, FireOutcome | None)


# --- from outside ------------------------------------------------------------------------------


async def executions(client: Client) -> None:
    execution = await client.start(
        Steps,
        1,
        key="k",
        delay=timedelta(seconds=1),
        attributes={"team": "a"},
        on_conflict="restart-failed",
    )
    assert_type(execution, Execution[Summary])
    assert_type(await execution.join(), Summary)
    assert_type(await client.execute(Steps, 1, key="k", timeout=timedelta(seconds=1)), Summary)
    assert_type(client.execution(Ballot, "b"), Execution[Vote | None])
    assert_type(await client.start(EachPage, [Page(1, "")]), Execution[int])
    assert_type(await client.start(Stricter, "b"), Execution[Vote | None])
    assert_type(await client.execute(Clock, None), datetime)
    assert_type(await execution.describe(), ExecutionInfo)
    assert_type(await execution.history(), list[JournalEvent])
    assert_type(execution.id, str)
    await execution.interrupt("enough")
    async for info in client.executions(Steps, status=[Status.RUNNING], attributes={"a": 1}):
        assert_type(info, ExecutionInfo)
        assert_type(info.error, ErrorDetails | None)
    async for result in client.prune(Steps, older_than=timedelta(days=7), version=2, dry_run=True):
        assert_type(result.execution, ExecutionInfo)


async def resolutions(client: Client) -> None:
    ballot = client.execution(Ballot, "b")
    assert_type(await ballot.resolve(Ballot.vote, Vote(by="me", yes=True)), bool)
    assert_type(await ballot.resolve(Ballot.quorum, None), bool)
    assert_type(await ballot.resolve(Ballot.tags, ["a"]), bool)
    assert_type(await ballot.resolve(Ballot.choice, "yes"), bool)
    assert_type(await ballot.reject(Stricter.veto, "no"), bool)


async def ending(execution: Execution[Summary]) -> str:
    outcome = await execution.poll()
    match outcome:
        case Pending(status):
            assert_type(status, Status)
            return status.name
        case Succeeded(value):
            assert_type(value, Summary)
            return str(value.words)
        case Failed(error):
            assert_type(error, ErrorDetails)
            return error.message
        case Interrupted(reason) | Terminated(reason):
            return reason
        case _:
            assert_never(outcome)


async def entities(client: Client) -> None:
    counter = client.entity(Counter, "c-1", at=datetime(2030, 1, 1, tzinfo=UTC), key="once")
    assert_type(counter, Counter)
    assert_type(await counter.add(1), int)
    assert_type(await counter.add(by=1, note="x"), int)
    assert_type(await counter.reset(), int | None)
    assert_type(await counter.audit(), list[str])
    await client.tell(counter.add, 1, note="x")
    await client.tell(counter.reset)


async def runners(settings: Settings) -> None:
    async with Runner(settings, groups=("default", "bulk")).register(Steps(), Counter(3)) as runner:
        runner.register(Nightly(), Weekly())
        assert_type(runner, Runner)
        assert_type(runner.client, Client)
    async with Client(settings) as client:
        assert_type(client, Client)


async def direct() -> None:
    """In a unit test a step is awaited on the plain object."""
    assert_type(await Steps().parse(Page(1, "a b")), list[str])
    assert_type(await Counter().add(1), int)
