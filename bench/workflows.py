"""What is measured: workflows whose steps do nothing, so that only the engine's own work counts."""

from engine import Workflow, activity


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
