"""The pulse of one attempt of an activity: its heartbeats, and the wish that it ends.

Made by ``workflow.outgoing``, watched by ``workflow.steps``, asked by the step's own code, in its
task or in threads. What is reported goes to the execution's ledger, once a second at most.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

from engine.core.clock import Alarm, Clock
from engine.core.codec import ValueCodec
from engine.core.errors import ConfigurationError

EVERY = timedelta(seconds=1)
"""How often heartbeats are stored."""


class Pulse:
    """``details`` are those that were reported last, encoded, by this attempt or an earlier one;
    empty when there are none. ``silent``: it was ended since no heartbeat came within ``timeout``.
    ``task`` is the attempt's own."""

    __slots__ = (
        "_alarm",
        "_clock",
        "_ended",
        "_host",
        "_last",
        "_report",
        "_sending",
        "_sent",
        "_task",
        "_timeout",
        "_unsent",
        "details",
        "silent",
    )

    def __init__(
        self,
        *,
        clock: Clock,
        timeout: timedelta | None,
        details: bytes,
        report: Callable[[datetime, bytes], None],
        task: asyncio.Task[None],
    ) -> None:
        self.details: bytes = details
        self.silent: bool = False
        self._clock = clock
        self._timeout = timeout
        self._report = report
        self._host = threading.get_ident()
        self._task = task
        self._ended = False
        self._last: datetime | None = None
        self._sent: datetime | None = None
        self._unsent = False
        self._sending: Alarm | None = None
        self._alarm: Alarm | None = None

    # --- asked by the step's code, from any thread ------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether the attempt has ended, or is to end."""
        return self._ended or self._task.cancelling() > 0

    def beat(self, details: object) -> None:
        """A sign of life. In a thread, ``CancelledError`` once the attempt is over."""
        if self.over:
            if threading.get_ident() != self._host:
                raise asyncio.CancelledError("the step was cancelled, or its time is over")
            return
        if self._timeout is None:
            if details is not None:
                raise ConfigurationError(
                    "nobody would hear of these details: give the step a heartbeat_timeout, as in"
                    " @activity(heartbeat_timeout=timedelta(seconds=30))"
                )
            return
        if details is not None:
            self.details = ValueCodec[Any](Any, what="a heartbeat's details").encode(details)
        self._last = self._clock.now()
        if not self._unsent:
            self._unsent = True
            self._task.get_loop().call_soon_threadsafe(self._soon)

    def reported(self) -> object:
        """The details, decoded."""
        return json.loads(self.details) if self.details else None

    # --- on the host's loop -----------------------------------------------------------------------

    def begin(self) -> None:
        """The step's code begins, which it calls itself: a thread may have been waited for."""
        if self._timeout is not None:
            self._last = self._clock.now()

    def watch(self, scope: asyncio.Timeout) -> None:
        """Let ``scope`` time out when no heartbeat comes in time."""
        if self._timeout is not None:
            self._look(scope, self._timeout)

    def end(self) -> None:
        """The attempt is over."""
        self._ended = True
        for alarm in (self._alarm, self._sending):
            if alarm is not None:
                alarm.cancel()

    def send_rest(self) -> None:
        """Report what was not reported yet."""
        if self._unsent:
            self._send()

    def _look(self, scope: asyncio.Timeout, timeout: timedelta) -> None:
        if self.over or scope.expired():
            return
        now = self._clock.now()
        due = (self._last or now) + timeout
        if due <= now:
            self.silent = True
            scope.reschedule(self._task.get_loop().time())
        else:
            self._alarm = self._clock.call_at(due, lambda: self._look(scope, timeout))

    def _soon(self) -> None:
        if self.over:
            return
        due = None if self._sent is None else self._sent + EVERY
        if due is None or due <= self._clock.now():
            self._send()
        else:
            self._sending = self._clock.call_at(due, self._send)

    def _send(self) -> None:
        self._unsent = False
        self._sent = self._clock.now()
        self._report(self._last or self._sent, self.details)
