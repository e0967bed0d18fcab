"""The threads that steps without ``async`` run in, and how many of them are at work.

Made by the runner; used by ``workflow.steps``.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class StepThreads(ThreadPoolExecutor):
    """``in_use``: how many calls are awaited. A clock that is virtual waits for them."""

    def __init__(self, size: int) -> None:
        super().__init__(size, thread_name_prefix="outlast-step")
        self.in_use: int = 0

    async def run(self, function: Callable[[], T]) -> T:
        self.in_use += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self, function)
        finally:
            self.in_use -= 1
