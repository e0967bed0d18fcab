"""What fills the dumps, and goes on with them.

The histories in dumps were written by this code: add to it, and change nothing that is there.
"""

from datetime import datetime, timedelta
from typing import Any

from pydantic import BaseModel

from engine import (
    Client,
    Cron,
    Deferred,
    Entity,
    EntityDefect,
    GiveUp,
    Queue,
    RetryPolicy,
    State,
    Status,
    Transaction,
    Workflow,
    activity,
    rpc,
    signal,
    transaction,
    update,
)
from engine.testing import TestCluster
from tests.eventually import eventually

SHARDS = 8
SOON = timedelta(seconds=4)
"""From when a dump is made until what waits for a time is due."""
EFFECTS = "create table if not exists effects (execution text not null, step text not null)"
SETTINGS: dict[str, Any] = {
    "shards_per_group": SHARDS,
    "max_deliveries": 4,
    "suspend_after": timedelta(milliseconds=20),
    "poll_interval": timedelta(milliseconds=200),
    "heartbeat_interval": timedelta(milliseconds=200),
    "time_to_live": timedelta(seconds=2),
    "retention": None,
    "retention_failed": None,
}


class Order(BaseModel):
    id: str
    items: list[str] = []
    how: str = "wait"


class Stock(Entity):
    holds = State(list[str])

    @rpc
    async def reserve(self, who: str) -> int:
        self.holds.append(who)
        return len(self.holds)

    @rpc
    async def held(self) -> list[str]:
        return self.holds

    @rpc
    async def fall(self) -> None:
        raise EntityDefect("it falls")


class Lots(Queue[str, str]):
    concurrency = 1

    async def process(self, item: str) -> str:
        return item.upper()


class Part(Workflow[str, str]):
    ready = Deferred(str)

    async def execute(self, request: str) -> str:
        return f"{request} {await self.ready.wait()}"


class Flow(Workflow[Order, list[str]]):
    """One step of each kind, then what its order says."""

    go = Deferred(str)

    @classmethod
    def key(cls, request: Order) -> str:
        return request.id

    async def execute(self, request: Order) -> list[str]:
        self.said = list[str]()
        held = await self.entity(Stock, "shelf").reserve(request.id)
        self.compensate(self.undo, f"{held > 0}")
        drawn = f"{self.random().random()} {self.uuid()} {self.now()}"
        packed = await self.pack(drawn) if self.patched("packs") else drawn
        await self.record("recorded")
        match request.how:
            case "fail":
                await self.refuse()
            case "sleep":
                await self.sleep(SOON)
            case "retry":
                await self.flaky()
            case "child":
                self.said.append(await self.run_child(Part, "part", key=f"part of {request.id}"))
            case _:
                self.said.append(await self.go.wait())
        await self.record("ended")
        return [*self.said, *request.items, str(packed == drawn)]

    @signal
    async def say(self, text: str) -> None:
        self.said.append(text)

    @update
    async def add(self, text: str) -> int:
        self.said.append(text)
        return len(self.said)

    @activity
    async def pack(self, what: str) -> str:
        return what

    @activity
    async def undo(self, what: str) -> None:
        return None

    @activity
    async def refuse(self) -> None:
        raise GiveUp("refused")

    @activity(retry=RetryPolicy(attempts=3, initial=SOON, jitter=0))
    async def flaky(self) -> int:
        if self.attempt == 1:
            raise ConnectionError("not yet")
        return self.attempt

    @transaction
    async def record(self, tx: Transaction, step: str) -> None:
        await tx.execute("insert into effects values ($1, $2)", self.execution_id, step)


class Nightly(Cron):
    schedule = "0 3 * * *"
    timezone = "Europe/Berlin"

    async def run(self, at: datetime) -> None:
        return None


def cluster(dsn: str) -> TestCluster:
    """The only runner over the database, which has the table ``effects``, and a client."""
    return TestCluster(*served(), dsn=dsn, **SETTINGS)


def served() -> list[Any]:
    """All that a runner registers."""
    return [Flow(), Part(), Stock(), Lots(), Nightly()]


async def fill(client: Client) -> None:
    """Leave something of every kind, ended and under way."""
    for how, status in (("wait", Status.SUSPENDED), ("fail", Status.FAILED)):
        await client.start(Flow, Order(id=f"ended {how}", items=["a"], how=how))
        await stands(client, f"ended {how}", status)
    ended = client.execution(Flow, "ended wait")
    await ended.signal(Flow.say, "signal")
    assert await ended.update(Flow.add, "update") == 2
    assert await ended.resolve(Flow.go, "gone")
    await ended.join()
    await client.start(Flow, Order(id="interrupted"))
    await stands(client, "interrupted", Status.SUSPENDED)
    await client.execution(Flow, "interrupted").interrupt("enough")
    await stands(client, "interrupted", Status.INTERRUPTED)

    await client.start(Flow, Order(id="waits"), attributes={"tenant": "é"})
    await client.start(Flow, Order(id="paused"))
    await client.start(Flow, Order(id="parent", how="child"))
    for id in ("waits", "paused", "parent"):
        await stands(client, id, Status.SUSPENDED)
    await client.execution(Flow, "waits").signal(Flow.say, "before")
    await client.execution(Flow, "paused").pause("for a dump")
    await stands(client, "paused", Status.PAUSED)

    await client.queue(Lots).pause("for a dump")
    for item in ("one", "two"):
        await client.submit(Lots, item, id=item)
    await client.tell(client.entity(Stock, "broken").fall)

    async def dead() -> bool:
        return len([letter async for letter in client.dead_letters()]) == 1

    await eventually(dead, timeout=30)
    await client.start(Flow, Order(id="sleeps", how="sleep"))
    await client.start(Flow, Order(id="retries", how="retry"))
    await client.start(Flow, Order(id="scheduled", how="sleep"), delay=SOON)
    for id in ("sleeps", "retries"):
        await stands(client, id, Status.SUSPENDED)


async def stands(client: Client, id: str, status: Status) -> None:
    """Wait until the execution has this status."""

    async def has() -> bool:
        return (await client.execution(Flow, id).describe()).status is status

    await eventually(has, timeout=30)
