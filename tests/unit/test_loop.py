"""The loop that bodies run on: the same order every time, nothing outside, a clean end."""

import asyncio
import contextlib
import gc
import random
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import pytest

from engine import ConfigurationError
from engine.workflow.loop import DeterministicLoop

Body = Callable[[], Coroutine[Any, Any, Any]]
RUNS = 50


class Driver:
    """Runs a body as an execution does: drain, deliver one event, drain."""

    def __init__(self, body: Body, *, salt: int = 7) -> None:
        self.observations = 0
        self.loop = DeterministicLoop(observed=self._observed, salt=salt)
        with self.loop.running():
            self.task = self.loop.create_task(body())

    def drain(self) -> None:
        while not self.loop.drain():
            pass

    def run(self) -> Any:
        """To the body's end, each timer when it is due."""
        self.drain()
        while not self.task.done() and (timer := self.loop.next_timer()) is not None:
            self.loop.now = max(self.loop.now, timer.deadline)
            self.loop.fire(timer.ordinal)
            self.drain()
        return self.task.result()

    def _observed(self) -> None:
        self.observations += 1


def run(body: Body) -> Any:
    return Driver(body).run()


# --- the same order -------------------------------------------------------------------------------


class Scenarios:
    """Bodies that write down what happens in which order."""

    def __init__(self) -> None:
        self.trace: list[object] = []

    async def work(self, name: object, *delays: float) -> object:
        try:
            for delay in delays:
                await asyncio.sleep(delay)
                self.trace.append((name, delay))
            return name
        except asyncio.CancelledError:
            self.trace.append((name, "cancelled"))
            raise

    async def gather(self) -> None:
        names = await asyncio.gather(*(self.work(n, 1, n % 3, 0) for n in range(12)))
        self.trace.append(names)

    async def gather_that_fails(self) -> None:
        async def fail() -> None:
            await asyncio.sleep(2)
            raise ValueError

        results = await asyncio.gather(
            *(self.work(n, n % 4, 1) for n in range(12)), fail(), return_exceptions=True
        )
        self.trace.append([type(result).__name__ for result in results])

    async def task_group(self) -> None:
        async with asyncio.TaskGroup() as group:
            for n in range(12):
                group.create_task(self.work(n, n % 5, 1))

    async def task_group_that_fails(self) -> None:
        async def fail() -> None:
            await asyncio.sleep(3)
            raise ValueError

        with contextlib.suppress(BaseExceptionGroup):
            async with asyncio.TaskGroup() as group:
                for n in range(12):
                    group.create_task(self.work(n, n % 5, 9))
                group.create_task(fail())

    async def time_outs(self) -> None:
        async def within(n: int) -> None:
            try:
                async with asyncio.timeout(3):
                    await self.work(n, n % 6)
            except TimeoutError:
                self.trace.append((n, "late"))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.work(n, 1, 1), 1.5)

        await asyncio.gather(*(within(n) for n in range(12)))

    async def wait(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.work(n, 1 + n % 3)) for n in range(12)]
            while tasks:
                done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                self.trace.append([task.result() for task in done])
                tasks = list(pending)

    async def as_completed(self) -> None:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self.work(n, 1 + n % 3)) for n in range(12)]
            for each in asyncio.as_completed(tasks):
                self.trace.append(await each)

    async def shield(self) -> None:
        async with asyncio.TaskGroup() as group:
            inner = [group.create_task(self.work(n, 2)) for n in range(6)]
            for task in inner:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(0.5):
                        await asyncio.shield(task)
                    self.trace.append("in time")

    async def locks(self) -> None:
        lock, semaphore, event = asyncio.Lock(), asyncio.Semaphore(2), asyncio.Event()

        async def enter(n: int) -> None:
            await event.wait()
            async with semaphore:
                await self.work(("semaphore", n), n % 2)
                async with lock:
                    await self.work(("lock", n), 1)

        async with asyncio.TaskGroup() as group:
            for n in range(8):
                group.create_task(enter(n))
            await asyncio.sleep(1)
            event.set()

    async def queue(self) -> None:
        queue: asyncio.Queue[int] = asyncio.Queue(maxsize=2)
        condition = asyncio.Condition()

        async def produce(n: int) -> None:
            for each in range(3):
                await queue.put(10 * n + each)
                await asyncio.sleep(n % 2)

        async def consume(name: str) -> None:
            while (item := await queue.get()) >= 0:
                await self.work((name, item), 1)
                async with condition:
                    condition.notify_all()

        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(consume(name)) for name in "abc"]
            async with asyncio.TaskGroup() as producers:
                for n in range(4):
                    producers.create_task(produce(n))
            for _ in readers:
                await queue.put(-1)

    async def generators(self) -> None:
        async def count(n: int) -> AsyncIterator[int]:
            try:
                for each in range(5):
                    await asyncio.sleep(each % 2)
                    yield 10 * n + each
            finally:
                await self.work(("end", n), 0)

        async def read(n: int) -> None:
            async for item in count(n):
                self.trace.append(item)
                if item % 10 == n:
                    break

        await asyncio.gather(*(read(n) for n in range(6)))
        await asyncio.sleep(1)


SCENARIOS = [
    name for name in vars(Scenarios) if not name.startswith("_") and name not in {"trace", "work"}
]


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_order_is_the_same_in_every_run(name: str) -> None:
    def trace() -> list[object]:
        noise = [bytearray(random.randrange(3000)) for _ in range(random.randrange(100))]
        scenarios = Scenarios()
        run(getattr(scenarios, name))
        del noise
        return scenarios.trace

    first = trace()

    assert first
    for _ in range(RUNS):
        assert trace() == first


def test_names_of_tasks_are_the_same_in_every_run() -> None:
    async def body() -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(0)) for _ in range(3)]
        return [task.get_name() for task in tasks]

    assert run(body) == run(body) == ["Task-2", "Task-3", "Task-4"]


def test_tasks_of_different_bodies_do_not_share_hashes() -> None:
    async def body() -> int:
        return hash(asyncio.current_task())

    assert Driver(body, salt=1 << 40).run() != Driver(body, salt=1 << 50).run()
    assert Driver(body, salt=5).run() == Driver(body, salt=5).run()


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_starting_coroutines_in_the_order_of_their_addresses_is_refused() -> None:
    async def body() -> None:
        for each in asyncio.as_completed([asyncio.sleep(1), asyncio.sleep(2)]):
            await each

    with pytest.raises(ConfigurationError, match=r"as_completed.*hand it tasks"):
        run(body)
    gc.collect()


def test_the_clock_stands_still_between_events() -> None:
    async def body() -> list[float]:
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        for _ in range(1000):
            await asyncio.sleep(0)
        times.append(loop.time())
        await asyncio.sleep(2.5)
        return [*times, loop.time()]

    driver = Driver(body)
    assert driver.run() == [0.0, 0.0, 2.5]
    assert driver.observations > 0


def test_timers_are_known_by_the_order_in_which_they_were_made() -> None:
    async def body() -> None:
        await asyncio.gather(*(asyncio.sleep(delay) for delay in (3, 1, 2)))

    driver = Driver(body)
    driver.drain()

    assert {key: timer.deadline for key, timer in driver.loop.timers.items()} == {0: 3, 1: 1, 2: 2}
    fired: list[int] = []
    while (timer := driver.loop.next_timer()) is not None:
        fired.append(timer.ordinal)
        driver.loop.fire(timer.ordinal)
        driver.drain()
    assert fired == [1, 2, 0]
    assert driver.task.done()


def test_a_cancelled_timer_is_gone_and_its_ordinal_is_not_used_again() -> None:
    async def body() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(9):
                await asyncio.sleep(1)
        await asyncio.sleep(5)

    driver = Driver(body)
    driver.drain()
    driver.loop.fire(1)
    driver.drain()

    assert list(driver.loop.timers) == [2]


def test_a_body_that_hogs_the_loop_gives_way_between_turns() -> None:
    async def body() -> None:
        for _ in range(20_000):
            await asyncio.sleep(0)

    driver = Driver(body)
    turns = 1
    while not driver.loop.drain():
        turns += 1

    assert driver.task.done()
    assert turns > 2


def test_the_hosts_loop_and_hooks_are_back_after_a_turn() -> None:
    async def body() -> None:
        await asyncio.sleep(0)

    before = sys.get_asyncgen_hooks()
    run(body)

    assert sys.get_asyncgen_hooks() == before
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_an_async_generator_left_behind_ends_on_the_loop_that_ran_it() -> None:
    ended_on: list[object] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            ended_on.append(asyncio.get_running_loop())

    async def body() -> None:
        async for _ in numbers():
            break
        gc.collect()
        await asyncio.sleep(1)

    driver = Driver(body)
    driver.run()

    assert ended_on == [driver.loop]


# --- nothing outside ------------------------------------------------------------------------------


async def connect() -> None:
    await asyncio.open_connection("localhost", 1)


async def serve() -> None:
    await asyncio.start_server(lambda _reader, _writer: None, "localhost", 0)


async def look_up() -> None:
    await asyncio.get_running_loop().getaddrinfo("localhost", 1)


async def receive() -> None:
    with socket.socket() as plain:
        plain.setblocking(False)
        await asyncio.get_running_loop().sock_recv(plain, 1)


async def watch() -> None:
    asyncio.get_running_loop().add_reader(0, print)


async def offload() -> None:
    await asyncio.to_thread(print)


async def submit() -> None:
    await asyncio.get_running_loop().run_in_executor(None, print)


async def from_a_thread() -> None:
    asyncio.get_running_loop().call_soon_threadsafe(print)


async def spawn() -> None:
    await asyncio.create_subprocess_exec("true")


async def shell() -> None:
    await asyncio.create_subprocess_shell("true")


async def handle_signals() -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print)


async def stop() -> None:
    asyncio.get_running_loop().stop()


async def close() -> None:
    asyncio.get_running_loop().close()


async def make_tasks_otherwise() -> None:
    asyncio.get_running_loop().set_task_factory(None)


@pytest.mark.parametrize(
    "body",
    [
        connect,
        serve,
        look_up,
        receive,
        watch,
        offload,
        submit,
        from_a_thread,
        spawn,
        shell,
        handle_signals,
        stop,
        close,
        make_tasks_otherwise,
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")
def test_reaching_outside_is_refused_with_the_place_for_it(body: Body) -> None:
    with pytest.raises(ConfigurationError, match=r"cannot use .* \(\w+\).*Do this in an activity"):
        run(body)
    gc.collect()


def test_every_method_of_a_loop_is_either_there_or_refused() -> None:
    plain = asyncio.AbstractEventLoop
    missing = [
        name
        for name in vars(plain)
        if not name.startswith("__") and getattr(DeterministicLoop, name) is getattr(plain, name)
    ]

    assert missing == []


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_exiting_is_contained_and_told(kind: type[BaseException]) -> None:
    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(leave())
            await asyncio.sleep(10)

    async def leave() -> None:
        raise kind("bye")

    driver = Driver(body)
    driver.drain()

    assert isinstance(driver.loop.fatal, kind)
    driver.loop.close_body()


# --- the end in the middle ------------------------------------------------------------------------


@pytest.fixture
def quiet(capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What Python complains about once everything is collected; not of what other tests left."""

    def complaints() -> str:
        for _ in range(3):
            gc.collect()
        return capfd.readouterr().err + caplog.text

    complaints()
    caplog.clear()
    return complaints


def middle(body: Body) -> Driver:
    driver = Driver(body)
    driver.drain()
    assert not driver.task.done()
    return driver


def test_closing_runs_plain_finally_code_here_and_now(quiet: Callable[[], str]) -> None:
    ran: list[tuple[str, int]] = []

    def note(what: str) -> None:
        ran.append((what, threading.get_ident()))

    async def branch(name: str) -> None:
        try:
            await asyncio.sleep(10)
        finally:
            note(f"{name} inner")
            note(f"{name} outer")

    async def body() -> None:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(branch("a"))
                group.create_task(branch("b"))
        finally:
            note("body")

    driver = middle(body)
    driver.loop.close_body()

    assert sorted(what for what, _ in ran) == ["a inner", "a outer", "b inner", "b outer", "body"]
    assert {thread for _, thread in ran} == {threading.get_ident()}
    del driver
    assert quiet() == ""


async def clean_up_by_awaiting() -> None:
    try:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(1)
            raise AssertionError("went on after the end")
    finally:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(1))


async def swallow_a_lot() -> None:
    for _ in range(20):
        with contextlib.suppress(BaseException):
            await asyncio.sleep(10)


async def start_more() -> None:
    try:
        await asyncio.sleep(10)
    finally:
        tasks = [asyncio.get_running_loop().create_task(asyncio.sleep(n)) for n in range(3)]
        await asyncio.wait(tasks)


async def nested_groups() -> None:
    async with asyncio.TaskGroup() as outer:
        outer.create_task(asyncio.sleep(10))
        async with asyncio.timeout(5), asyncio.TaskGroup() as inner:
            inner.create_task(asyncio.sleep(10))
            await asyncio.gather(*(clean_up_by_awaiting() for _ in range(3)))


async def hold_everything() -> None:
    lock, condition, queue = asyncio.Lock(), asyncio.Condition(), asyncio.Queue[int]()

    async def wait(what: Awaitable[object]) -> None:
        async with lock:
            await what

    async def notified() -> None:
        async with condition:
            await condition.wait()

    async with asyncio.TaskGroup() as group:
        group.create_task(wait(queue.get()))
        group.create_task(notified())
        await asyncio.shield(group.create_task(asyncio.sleep(10)))


async def in_the_middle_of_generators() -> None:
    @contextlib.asynccontextmanager
    async def resource() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(1)

    async def numbers() -> AsyncIterator[int]:
        async with resource():
            try:
                while True:
                    await asyncio.sleep(0)
                    yield 1
            finally:
                await asyncio.sleep(1)

    async def read() -> None:
        async for _ in numbers():
            await asyncio.sleep(10)

    waiting = numbers()
    await anext(waiting)
    await asyncio.gather(read(), read())
    await waiting.aclose()  # type: ignore[attr-defined]


CLOSED_IN_THE_MIDDLE = [
    clean_up_by_awaiting,
    swallow_a_lot,
    start_more,
    nested_groups,
    hold_everything,
    in_the_middle_of_generators,
]


@pytest.mark.parametrize("body", CLOSED_IN_THE_MIDDLE)
def test_closing_leaves_no_warning_and_nothing_pending(
    body: Body, quiet: Callable[[], str]
) -> None:
    driver = middle(body)

    driver.loop.close_body()

    assert driver.loop.idle
    assert driver.loop.timers == {}
    assert driver.loop.next_timer() is None
    assert driver.loop.drain()
    del driver
    assert quiet() == ""


def test_what_is_asked_of_a_closed_loop_goes_nowhere() -> None:
    async def body() -> None:
        await asyncio.sleep(10)

    driver = middle(body)
    driver.loop.close_body()
    ran: list[int] = []

    driver.loop.call_soon(ran.append, 1)
    driver.loop.call_later(0, ran.append, 2)

    assert driver.loop.drain()
    assert (ran, driver.loop.timers) == ([], {})


def test_closing_after_the_end_does_nothing(quiet: Callable[[], str]) -> None:
    async def body() -> int:
        return 1

    driver = Driver(body)
    assert driver.run() == 1
    driver.loop.close_body()
    driver.loop.close_body()

    assert driver.task.result() == 1
    del driver
    assert quiet() == ""
