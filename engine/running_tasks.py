"""The handlers and steps that a runner has running, from their start to an end that is certain.

Made by ``runner`` for each incarnation, which gives ``spawn`` to its hosts and ends what is left.
"""

import asyncio
import logging
import traceback
from collections.abc import Collection, Coroutine
from contextvars import Context
from datetime import timedelta
from typing import Any

from engine.core.clock import monotonic

log: logging.Logger = logging.getLogger(__name__)

_CLEANUP = 0.5
_PATIENCE = timedelta(seconds=10)
_CLOSINGS = 50


class RunningTasks:
    """Tasks that have a copy of ``context`` each, and ``patience`` to end once they are told to.

    Not a ``TaskGroup``, which waits for ever for a handler that swallows its cancellation.
    """

    def __init__(self, *, context: Context, patience: timedelta = _PATIENCE) -> None:
        self._loop = asyncio.get_running_loop()
        self._context = context
        self._patience = patience.total_seconds()
        self._tasks: dict[asyncio.Task[None], Coroutine[Any, Any, None]] = {}
        self._over = False

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a step or handler until its end, or that of its runner."""
        if self._over:
            work.close()
            raise RuntimeError("the runner has ended; nothing runs in it any more")
        # In the runner's own context: nothing of the sender's gets into a handler of this process
        # that would not get into one of another.
        task = self._loop.create_task(_guarded(work), context=self._context.copy())
        self._tasks[task] = work
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        work = self._tasks.pop(task)
        try:
            work.close()  # it may have been cancelled before it began
        except RuntimeError:
            log.debug("a cancelled task swallows even its closing")
        if not task.cancelled():
            task.exception()  # such as that it was closed; nobody else asks

    async def end_all(self) -> None:
        """End what is left; nothing is spawned afterwards."""
        while self._tasks:
            await self.end(self._tasks)
        self._over = True

    async def end(self, tasks: Collection[asyncio.Task[None]]) -> None:
        """Cancel tasks until they have ended; when patience is over, close their coroutines.

        One cancellation is not enough for cleanup that waits for what does not come any more, such
        as the answer of an entity whose runner has gone."""
        late, give_up = set(tasks), monotonic() + self._patience
        while late and monotonic() < give_up:
            for task in late:
                task.cancel()
            _, late = await asyncio.wait(late, timeout=_CLEANUP)
        for task in late:
            log.error(
                "a handler or step does not end although it is cancelled; it is closed here:\n%s",
                _stack(task),
            )
            self._close(task)
        if late:
            await asyncio.wait(late)

    def _close(self, task: asyncio.Task[None]) -> None:
        """Raise ``GeneratorExit`` where it waits, some times over if it swallows that too; then
        nothing resumes it any more."""
        work = self._tasks[task]
        for _ in range(_CLOSINGS):
            try:
                work.close()
                break
            except RuntimeError:
                continue  # "coroutine ignored GeneratorExit"
            except BaseException:  # noqa: BLE001 -- its cleanup failed, and so it has ended
                break
        outer = task.get_coro()
        assert outer is not None
        outer.close()
        task.cancel()


async def _guarded(work: Coroutine[Any, Any, None]) -> None:
    """Nothing a step or handler does may end the runner."""
    try:
        await work
    except (asyncio.CancelledError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException:
        log.exception("a task of the runner failed; its message is delivered again to a next owner")


def _stack(task: asyncio.Task[None]) -> str:
    """Where it waits: the task itself knows its outermost frame only."""
    lines: list[str] = []
    waits: Any = task.get_coro()
    while (frame := getattr(waits, "cr_frame", None)) is not None:
        lines += traceback.format_stack(frame, limit=1)
        waits = waits.cr_await
    return "".join(lines)
