"""What a runner keeps by itself, a cron or a queue, and changes when it is asked to.

Under ``queues`` and ``schedules``.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Protocol, TypeVar

from cli.durations import parse_duration
from cli.exits import CommandError, ExitCode
from cli.session import Session

if TYPE_CHECKING:
    from engine.node import Node
    from engine.storage.protocol import RunnerRow


class Kept(Protocol):
    """A handle on it. ``describe`` raises when there is none of that name."""

    @property
    def name(self) -> str: ...

    async def describe(self) -> object: ...


K = TypeVar("K", bound=Kept)
T = TypeVar("T")


async def ask(
    session: Session,
    handle: "Callable[[Node], K]",
    change: Callable[[K], Awaitable[T]],
    timeout: str,
) -> T:
    """Have it done by its runner; what was asked stays stored when nobody is there yet."""
    within = parse_duration(timeout).total_seconds()
    async with session.node() as node:
        kept = handle(node)
        await kept.describe()
        try:
            async with asyncio.timeout(within):
                return await change(kept)
        except TimeoutError:
            raise CommandError(
                f"no runner has done it within {timeout}; it is stored, and done as soon as one"
                f" keeps {kept.name}: 'outlast runners' lists those that live",
                ExitCode.TIMED_OUT,
            ) from None


def tell(session: Session, name: str, form: dict[str, object], said: str) -> None:
    """That it was done."""
    if session.output.as_json:
        session.output.line({"name": name, **form})
    else:
        session.output.say(said)


def owner(id: object, runner: "RunnerRow | None") -> str:
    """Who keeps it."""
    if runner is not None:
        return f"{runner.host}:{runner.pid}"
    return "nobody" if id is None else str(id)
