"""Wait for something to become true, instead of sleeping for long enough."""

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TypeVar

T = TypeVar("T")


async def eventually(
    condition: Callable[[], T | Awaitable[T]], *, timeout: float = 10.0, every: float = 0.02
) -> T:
    """Return the condition's first true value; also wait while it fails an assertion.

    The condition is a plain function or a coroutine function. When time runs out, its last
    assertion error is raised, or an ``AssertionError`` that shows its last value.
    """
    deadline = monotonic() + timeout
    while True:
        failure: AssertionError | None = None
        value: object = None
        try:
            answer = condition()
            value = await answer if inspect.isawaitable(answer) else answer
            if value:
                return value  # type: ignore[return-value]
        except AssertionError as error:
            failure = error
        if monotonic() > deadline:
            raise failure or AssertionError(f"not within {timeout} s; the last value was {value!r}")
        await asyncio.sleep(every)
