"""The event loop a workflow's body runs on: the same program, the same order, every time.

``workflow.execution`` feeds it one event after the other and drains it in between, from a callback
of the host's loop. Plain asyncio works on it: tasks, gather, TaskGroup, timeout, Event, Queue.
Its clock is the time of the last event, and its timers are durable. Everything that would reach
outside is refused with an error that says where it belongs.
"""

import asyncio
import contextvars
import heapq
import sys
import weakref
from asyncio import events
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import AbstractContextManager, contextmanager
from types import FrameType
from typing import Any, TypeVar

from typing_extensions import TypeVarTuple

from engine.core.errors import ConfigurationError
from engine.workflow.refusals import Refusals

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_Hook = Callable[[AsyncGenerator[Any, Any]], None]

_DRAIN_BUDGET = 5000
_CLOSE_TRIES = 50
_TASKS_KEPT = 64
_HASH_BITS = (1 << 60) - 1
_AS_COMPLETED = frozenset({"as_completed", "_AsCompletedIterator.__init__"})


class DurableTimer(asyncio.TimerHandle):
    """A timer by its ordinal in the execution; it fires when its event is delivered."""

    __slots__ = ("ordinal",)
    ordinal: int

    @property
    def deadline(self) -> float:
        return self.when()


class _Running:
    """A class of its own, since it is entered for every event."""

    __slots__ = ("_begun", "_ended", "_hooks", "_host", "_loop")

    def __init__(self, loop: asyncio.AbstractEventLoop, begun: _Hook, ended: _Hook) -> None:
        self._loop = loop
        self._begun = begun
        self._ended = ended

    def __enter__(self) -> None:
        self._host = events._get_running_loop()
        self._hooks = sys.get_asyncgen_hooks()
        events._set_running_loop(self._loop)
        sys.set_asyncgen_hooks(firstiter=self._begun, finalizer=self._ended)

    def __exit__(self, *_: object) -> None:
        sys.set_asyncgen_hooks(*self._hooks)
        events._set_running_loop(self._host)


def _hash(self: "DurableTask | DurableFuture") -> int:
    """By order of creation instead of by address: asyncio keeps tasks in sets, and the order in
    which it walks them (a TaskGroup that cancels, the results of ``wait``) must be the same again.
    """
    try:
        return self.order
    except AttributeError:
        loop = self.get_loop()
        assert isinstance(loop, DeterministicLoop)
        self.order = loop.next_order()
        return self.order


TIMEOUTS_COMPARE: bool = "cancelling" in asyncio.Timeout.__aenter__.__code__.co_names
"""Whether a timeout that expires compares with how often its task was being cancelled when it
began; in the first versions of Python 3.11 it asks whether that is not at all."""


class Interruption(str):
    """The message of a ``CancelledError`` that comes from outside the body."""

    __slots__ = ()


class _Cancellations(int):
    """How often a task is being cancelled, as a timeout asks it when it begins and compares at its
    end.

    The body uncounts an interrupt as soon as it has been raised, so that one that was caught is
    over. While one is still being handled it counts here, as it does in plain asyncio: a timeout
    that expires during that cleanup must not take the interrupt for its own doing.
    """

    def __init__(self, _: int) -> None:
        self.handled: int = _interruptions()

    def __ge__(self, count: int) -> bool:
        return count + _interruptions() <= int(self) + self.handled


def _interruptions() -> int:
    """How many of them are being handled here and now."""
    found = set[int]()
    error = sys.exception()
    while error is not None:
        found.update(id(each) for each in error.args if isinstance(each, Interruption))
        error = error.__context__
    return len(found)


class DurableTask(asyncio.Task[Any]):
    """A task on a workflow's loop."""

    __slots__ = ("order",)
    order: int
    __hash__ = _hash

    def cancelling(self) -> int:
        return _Cancellations(super().cancelling())

    if not TIMEOUTS_COMPARE:  # Debian 12's Python, for one

        def uncancel(self) -> int:
            return super().uncancel() + _interruptions()


class DurableFuture(asyncio.Future[Any]):
    """A future on a workflow's loop."""

    __slots__ = ("order",)
    order: int
    __hash__ = _hash


class DeterministicLoop(Refusals, asyncio.AbstractEventLoop):
    """A ready queue and a list of timers; nothing in it knows the real time.

    ``observed`` is called when code on it reads the clock. ``salt`` keeps the hashes of its tasks
    apart from those of other loops; it must be the same in a replay. ``fatal`` is the first
    SystemExit or KeyboardInterrupt raised on it: it is contained here and fails the execution.
    """

    def __init__(self, *, observed: Callable[[], None], salt: int = 0) -> None:
        self.now: float = 0.0
        self.dead: bool = False
        self.fatal: BaseException | None = None
        self.timers: dict[int, DurableTimer] = {}
        self._observed = observed
        self._looking: str | None = None
        self._order = salt & _HASH_BITS
        self._tasks_made = 0
        self._ready: deque[asyncio.Handle] = deque()
        self._timers_made = 0
        self._schedule: list[tuple[float, int]] = []
        self._tasks: list[weakref.ref[asyncio.Task[Any]]] = []
        self._tasks_kept = _TASKS_KEPT
        self._generators: weakref.WeakSet[AsyncGenerator[Any, Any]] | None = None

    # --- driven by the execution ----------------------------------------------------------------

    @property
    def idle(self) -> bool:
        return not self._ready

    def drain(self) -> bool:
        """Run what is ready, at most a turn's worth; True when nothing is left.

        Call only from a callback of the host's loop, with no task of it current.
        """
        ready = self._ready
        if not ready:
            return True
        with _Running(self, self._begun, self._finalize):
            for _ in range(_DRAIN_BUDGET):
                if not ready:
                    return True
                handle = ready.popleft()
                if not handle.cancelled():
                    try:
                        handle._run()
                    except (SystemExit, KeyboardInterrupt) as error:
                        self.fatal = self.fatal or error
        return not ready

    def free(self) -> None:
        """Part the tasks of a closed body from the futures they waited for."""
        for task in self._living():
            waiter: asyncio.Future[Any] | None = getattr(task, "_fut_waiter", None)
            if waiter is not None:
                waiter.cancel()
        self._observed = _nothing

    def fire(self, ordinal: int) -> None:
        """Run a timer's callback at the next drain."""
        timer = self.timers.pop(ordinal)
        self._ready.append(timer)

    def next_timer(self) -> DurableTimer | None:
        """The pending timer with the earliest deadline."""
        schedule = self._schedule
        while schedule:
            timer = self.timers.get(schedule[0][1])
            if timer is not None:
                return timer
            heapq.heappop(schedule)
        return None

    def close_body(self) -> None:
        """Take everything on this loop out of memory without running any of it on.

        Nothing is thrown into the body but what closing a coroutine throws; ``finally`` blocks
        run here and now, on the host's thread, and whatever they ask of the loop goes nowhere.
        """
        self.dead = True
        tasks = [task for task in self._living() if not task.done()]
        if tasks or self._generators:
            with self.running():
                for task in tasks:
                    _discard(task)
                for generator in list(self._generators or ()):
                    _close_generator(generator)
        for timer in self.timers.values():
            timer.cancel()
        self.timers.clear()
        self._ready.clear()

    def running(self) -> AbstractContextManager[None]:
        """Make this the running loop, as asyncio and the async generators of the body see it."""
        return _Running(self, self._begun, self._finalize)

    @contextmanager
    def looking(self, who: str) -> Generator[None, None, None]:
        """For the block, code may look but schedule nothing: that would be lost in a replay."""
        before, self._looking = self._looking, who
        try:
            yield
        finally:
            self._looking = before

    def refuse_looking(self) -> None:
        """``ConfigurationError`` inside of ``looking``."""
        if self._looking is not None:
            raise ConfigurationError(
                f"{self._looking} may only look: it cannot run steps, tasks or timers, or draw"
                " random numbers"
            )

    def _living(self) -> list[asyncio.Task[Any]]:
        """The tasks that somebody still holds, oldest first."""
        return [task for kept in self._tasks if (task := kept()) is not None]

    def _keep(self, task: asyncio.Task[Any]) -> None:
        """Weakly, and as cheaply as can be: most bodies have few tasks, and all of them end."""
        self._tasks.append(weakref.ref(task))
        if len(self._tasks) > self._tasks_kept:
            self._tasks = [weakref.ref(task) for task in self._living() if not task.done()]
            self._tasks_kept = max(_TASKS_KEPT, 2 * len(self._tasks))

    def _begun(self, generator: AsyncGenerator[Any, Any]) -> None:
        if self._generators is None:
            self._generators = weakref.WeakSet()
        self._generators.add(generator)

    def _finalize(self, generator: AsyncGenerator[Any, Any]) -> None:
        if self._generators is not None:
            self._generators.discard(generator)
        if not self.dead:
            self.create_task(generator.aclose())

    # --- what asyncio asks of a loop --------------------------------------------------------------

    def time(self) -> float:
        if self._looking is None:
            self._observed()
        return self.now

    def call_soon(
        self,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        if self._looking is not None:
            self.refuse_looking()
        handle = asyncio.Handle(callback, args, self, context)
        if not self.dead:
            self._ready.append(handle)
        return handle

    def call_later(
        self,
        delay: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[*Ts], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        self.refuse_looking()
        self._observed()
        timer = DurableTimer(when, callback, args, self, context)
        timer.ordinal = self._timers_made  # also of one that cleanup makes, and cancels, too late
        if not self.dead:
            timer._scheduled = True  # type: ignore[attr-defined]
            self._timers_made += 1
            self.timers[timer.ordinal] = timer
            heapq.heappush(self._schedule, (when, timer.ordinal))
        return timer

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if isinstance(handle, DurableTimer):
            self.timers.pop(handle.ordinal, None)
            if not self.timers:
                self._schedule.clear()

    def next_order(self) -> int:
        self._order = (self._order + 1) & _HASH_BITS
        return self._order

    def create_future(self) -> asyncio.Future[Any]:
        return DurableFuture(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
        **options: Any,
    ) -> asyncio.Task[T]:
        _refuse_as_completed(sys._getframe(1))  # pyright: ignore[reportPrivateUsage]
        if self._looking is not None:
            coro.close()
            self.refuse_looking()
        self._tasks_made += 1
        name = name or f"Task-{self._tasks_made}"
        task = DurableTask(coro, loop=self, name=name, context=context, **options)
        hash(task)  # by which it has its order now, and not when a set first asks
        self._keep(task)
        if self.dead:
            _discard(task)  # made by cleanup that runs as the body leaves memory
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def get_task_factory(self) -> None:
        return None

    def get_exception_handler(self) -> None:
        return None

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Errors nobody retrieved are the body's own affair: its result decides."""

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """See ``call_exception_handler``."""


def _refuse_as_completed(caller: FrameType | None) -> None:
    """It puts coroutines into a set, and starts them in the order of their addresses."""
    for _ in range(4):
        if caller is None or caller.f_globals.get("__name__") != "asyncio.tasks":
            return
        if caller.f_code.co_qualname in _AS_COMPLETED:
            raise ConfigurationError(
                "asyncio.as_completed() starts coroutines in no fixed order, which a replay could"
                " not repeat: hand it tasks, made by group.create_task() of a TaskGroup"
            )
        caller = caller.f_back


def _discard(task: asyncio.Task[Any]) -> None:
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    _close(task.get_coro())


def _nothing() -> None:
    """Nobody listens any more."""


def _close(coroutine: Any) -> None:
    """Close a coroutine, also one whose ``finally`` blocks await again and again."""
    for _ in range(_CLOSE_TRIES):
        try:
            coroutine.close()
        except RuntimeError as error:
            if "ignored GeneratorExit" in str(error):
                continue
            return
        except BaseException:  # noqa: BLE001 -- whatever the body's cleanup raises ends with it
            return
        return


def _close_generator(generator: AsyncGenerator[Any, Any]) -> None:
    step = generator.aclose()
    try:
        step.send(None)
    except BaseException:  # noqa: BLE001 -- as above
        return
    _close(step)
