"""A client of a chaos run: random calls, each of which is noted in its file."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

from engine import Client, ExecutionInterrupted
from tests.chaos.history import Noted, Recorder
from tests.chaos.lives import Account, Life, Lots, Plan

LIMIT = timedelta(seconds=20)
"""How long a client waits for an answer, unless it is told otherwise."""
BRANCHES = 6
"""So many lives go on in a client at once."""
ACCOUNTS = 40


class Caller:
    """One process's calls, each of which is noted."""

    def __init__(
        self, client: Client, *, name: str, seed: int, file: Path, limit: timedelta = LIMIT
    ) -> None:
        self.client = client
        self.name = name
        self.limit = limit
        self.chance = random.Random(seed)
        self.notes = Recorder(file, name)
        self.stopped = False
        self._number = 0

    async def live(self) -> None:
        """Several lives at once, until stopped."""
        async with asyncio.TaskGroup() as group:
            for _ in range(BRANCHES):
                group.create_task(self._branch())

    async def _branch(self) -> None:
        lives: list[Callable[[], Awaitable[object]]]
        lives = [self.execution, self.execution, self.account, self.account, self.stream, self.item]
        while not self.stopped:
            await self.chance.choice(lives)()
            await asyncio.sleep(self.chance.uniform(0, 0.1))

    def number(self) -> int:
        self._number += 1
        return self._number

    async def insist(self, call: Callable[[], Awaitable[Noted]]) -> Noted:
        """What has one effect however often it is asked is asked until that is known."""
        while True:
            noted = await call()
            if not noted.unknown or self.stopped:
                return noted
            await asyncio.sleep(0.05)

    async def execution(self) -> None:
        id = f"{self.name}-{self.number()}"
        plan = Plan(id=id, number=self.number(), pause=self.chance.choice([0, 0.05, 0.3, 1.5]))
        await self.insist(lambda: self.start(plan))
        if self.chance.random() < 0.2:
            other = plan.model_copy(update={"number": -1})
            await self.start(other, "start another")
        for _ in range(self.chance.randrange(5)):
            say = self.chance.choice([self.hear, self.add])
            await say(id, self.number())
        if self.chance.random() < 0.2:
            await self.insist(lambda: self.interrupt(id))
        else:
            values = [self.number() for _ in range(self.chance.choice([1, 1, 2]))]
            async with asyncio.TaskGroup() as group:
                for value in values:
                    group.create_task(self.insist(lambda value=value: self.resolve(id, value)))
        await self.join(id)

    async def start(self, plan: Plan, op: str = "start") -> Noted:
        with self.notes.call(f"Life/{plan.id}", op) as noted:
            async with asyncio.timeout(self.limit.total_seconds()):
                noted.value = int((await self.client.start(Life, plan)).request_id)
        return noted

    async def hear(self, id: str, number: int) -> Noted:
        with self.notes.call(f"Life/{id}", "signal", number) as noted:
            async with asyncio.timeout(self.limit.total_seconds()):
                await self.client.execution(Life, id).signal(Life.hear, number)
        return noted

    async def add(self, id: str, number: int) -> Noted:
        with self.notes.call(f"Life/{id}", "update", number) as noted:
            async with asyncio.timeout(self.limit.total_seconds()):
                noted.value = await self.client.execution(Life, id).update(Life.add, number)
        return noted

    async def resolve(self, id: str, value: int) -> Noted:
        with self.notes.call(f"Life/{id}", "resolve", value) as noted:
            async with asyncio.timeout(self.limit.total_seconds()):
                noted.value = await self.client.execution(Life, id).resolve(Life.go, value)
        return noted

    async def interrupt(self, id: str) -> Noted:
        with self.notes.call(f"Life/{id}", "interrupt") as noted:
            async with asyncio.timeout(self.limit.total_seconds()):
                await self.client.execution(Life, id).interrupt("chaos")
        return noted

    async def join(self, id: str) -> Noted:
        with self.notes.call(f"Life/{id}", "join") as noted:
            try:
                told = await self.client.execution(Life, id).join(self.limit)
                noted.value = told.model_dump()
            except ExecutionInterrupted:
                noted.value = "interrupted"
        return noted

    async def end(self, id: str) -> None:
        """End what another began and left."""
        await self.insist(lambda: self.resolve(id, -1))
        await self.join(id)

    async def account(self) -> None:
        """A few messages to one of the accounts that all clients share."""
        id = f"a{self.chance.randrange(ACCOUNTS)}"
        account, key = self.client.entity(Account, id), f"Account/{id}"
        for _ in range(self.chance.randrange(1, 6)):
            op, name = self.chance.choice(["add", "tell", "poke", "peek"]), ""
            if op != "peek":
                name = f"{self.name}-{self.number()}"
            with self.notes.call(key, op, name) as noted:
                async with asyncio.timeout(self.limit.total_seconds()):
                    match op:
                        case "add":
                            noted.value = await account.add(name)
                        case "tell":
                            await self.client.tell(account.add, name)
                        case "poke":
                            noted.value = await account.poke(name)
                        case _:
                            noted.value = await account.peek()

    async def stream(self) -> None:
        await self.consume(f"s{self.name}-{self.number()}", self.chance.randrange(1, 60))

    async def consume(self, id: str, number: int) -> Noted:
        """Without a limit: leaving a stream early ends it."""
        with self.notes.call(f"Stream/{id}", "stream", number) as noted:
            noted.value = []
            async for each in self.client.entity(Account, id, key=id).count(number):
                noted.value.append(each)
        return noted

    async def item(self) -> None:
        id = f"i{self.name}-{self.number()}"
        await self.insist(lambda: self.submit(id))

    async def submit(self, id: str) -> Noted:
        """Once with the request's id, once with the result."""
        with self.notes.call(f"Lots/{id}", "submit") as noted:
            async with asyncio.timeout(self.limit.total_seconds()):
                item = await self.client.submit(Lots, id, id=id)
                noted.value = int(item.request_id)
        if noted.ok:
            with self.notes.call(f"Lots/{id}", "result") as result:
                result.value = await item.join(self.limit)
        return noted
