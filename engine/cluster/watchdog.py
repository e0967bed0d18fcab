"""Notice from another thread that the host's event loop does not answer.

Runs beside ``heartbeat`` in its thread; asks the host loop for a mark and reports where its thread
is when none comes. ``heartbeat`` stops beating for a host that has been blocked too long.
"""

import asyncio
import logging
import sys
import traceback
from collections import deque
from datetime import timedelta

from engine.core.clock import monotonic
from engine.core.ids import RunnerId

_FRAMES = 8
"""Of the stack, the innermost: what lies above is the event loop and who started it."""
_REMEMBERED = 20

logger: logging.Logger = logging.getLogger(__name__)


class Watchdog:
    """Asks ``host`` for a sign of life twice per ``warn_after``, one question at a time.

    ``thread`` is the identifier of the thread the host loop runs on. Time in which the asking
    thread did not run itself (a stopped process, C code that holds the GIL) is reported, but does
    not count as the host's: its first answer may just be about to come.
    """

    def __init__(
        self,
        *,
        runner: RunnerId,
        host: asyncio.AbstractEventLoop,
        thread: int,
        warn_after: timedelta,
        limit: timedelta,
    ) -> None:
        self._runner = runner
        self._host = host
        self._thread = thread
        self._warn_after = warn_after.total_seconds()
        self._limit = limit.total_seconds()
        self._waiting = False
        self._warned = False
        self._blocked = 0.0
        self._asked = 0.0
        self._answers = deque[float](maxlen=_REMEMBERED)

    @property
    def lag(self) -> timedelta:
        """The longest that the host took to answer one of the last twenty questions, or has taken
        by now. From any thread."""
        waits = monotonic() - self._asked if self._waiting else 0.0
        return timedelta(seconds=max([waits, *self._answers]))

    @property
    def given_up(self) -> bool:
        """Whether the host has been blocked for longer than the limit, and still is."""
        return self._waiting and self._blocked > self._limit

    async def watch(self) -> None:
        """Go on until cancelled, or until the host loop is closed. Runs on the thread's loop."""
        tick = self._warn_after / 2
        woke = monotonic()
        try:
            while True:
                self._ask()
                await asyncio.sleep(tick)
                slept = monotonic() - woke
                woke += slept
                if slept - tick > self._warn_after:
                    self._report_standstill(slept - tick)
                self._look(min(slept, 2 * tick))
        except RuntimeError:
            if not self._host.is_closed():
                raise

    def _ask(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._asked = monotonic()
            self._host.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        """Called on the host loop."""
        self._answers.append(monotonic() - self._asked)
        self._waiting = False

    def _look(self, passed: float) -> None:
        if self._waiting:
            beyond = self.given_up
            self._blocked += passed
            if self._blocked > self._warn_after and not self._warned:
                self._warned = True
                self._report_blocked()
            if self.given_up and not beyond:
                self._report_given_up()
            return
        if self._warned:
            logger.warning(
                "the event loop answers again after %.1f s", self._blocked, extra=self._extra()
            )
        self._warned = False
        self._blocked = 0.0

    def _report_blocked(self) -> None:
        logger.warning(
            "the event loop has not answered for %.1f s; move blocking code into a sync activity,"
            " which runs in a thread. It is here:\n%s",
            self._blocked,
            self._stack(),
            extra=self._extra(),
        )

    def _report_given_up(self) -> None:
        logger.error(
            "the event loop has been blocked for %.1f s, so its runner stops its heartbeat and"
            " will lose its shards to its peers. It is here:\n%s",
            self._blocked,
            self._stack(),
            extra=self._extra(),
        )

    def _report_standstill(self, seconds: float) -> None:
        logger.warning(
            "the whole process stood still for %.1f s: it was stopped, starved of CPU, or C code"
            " held the interpreter's lock. The host's thread is here:\n%s",
            seconds,
            self._stack(),
            extra=self._extra(),
        )

    def _stack(self) -> str:
        frames = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
        frame = frames.get(self._thread)
        if frame is None:
            return "(its thread has ended)"
        return "".join(traceback.format_stack(frame)[-_FRAMES:]).rstrip()

    def _extra(self) -> dict[str, object]:
        return {"runner": str(self._runner), "blocked_seconds": round(self._blocked, 3)}
