"""What is measured: steps, streams and calls that do nothing, so that only the engine counts."""

from collections.abc import AsyncIterator

from engine import Entity, State, Workflow, activity, rpc


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
