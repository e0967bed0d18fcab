"""What is measured: steps, streams, calls and items that do nothing but make the engine work."""

from collections.abc import AsyncIterator

from engine import Entity, Queue, State, Workflow, activity, rpc


class Steps(Workflow[int, int]):
    """That many steps, one after the other."""

    async def execute(self, request: int) -> int:
        total = 0
        for number in range(request):
            total += await self.step(number)
        return total

    @activity
    async def step(self, number: int) -> int:
        return number


class Feed(Entity):
    """Streams of numbers."""

    @rpc
    async def numbers(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number


class Counter(Entity):
    """Counts its calls, durably."""

    state = State(int)

    @rpc
    async def add(self) -> int:
        self.state += 1
        return self.state


class Free(Queue[int, int]):
    """Items without a limit."""

    async def process(self, item: int) -> int:
        return item


class Limited(Free):
    """Items of twenty keys, within limits in all and per key."""

    concurrency = 200
    per_key = 20

    @classmethod
    def key(cls, item: int) -> str:
        return str(item % 20)
