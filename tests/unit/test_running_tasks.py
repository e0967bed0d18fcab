"""Handlers and steps that end, that have to be told twice, and that do not end by themselves."""

import asyncio
from contextlib import suppress
from contextvars import copy_context
from datetime import timedelta

import pytest

from engine.running_tasks import RunningTasks


def running(patience: float = 30) -> RunningTasks:
    return RunningTasks(context=copy_context(), patience=timedelta(seconds=patience))


async def swallow(what: type[BaseException]) -> None:
    while True:
        with suppress(what):
            await asyncio.Event().wait()


async def test_cleanup_that_waits_is_told_again_until_it_ends() -> None:
    tasks, told = running(), 0

    async def stuck() -> None:
        nonlocal told
        for _ in range(3):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                told += 1

    task = tasks.spawn(stuck())
    await asyncio.sleep(0)
    await tasks.end([task])
    assert task.done()
    assert told == 3


async def test_what_swallows_its_cancellation_is_closed_and_its_stack_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    tasks = running(patience=0.1)
    task = tasks.spawn(swallow(asyncio.CancelledError))
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await tasks.end_all()
    assert task.done()
    assert "in swallow\n    await asyncio.Event().wait()" in caplog.text


async def test_nothing_resumes_what_swallows_even_its_closing() -> None:
    tasks, over, rounds = running(patience=0.1), False, 0

    async def stubborn() -> None:
        nonlocal rounds
        while not over:
            with suppress(BaseException):
                await asyncio.sleep(0.01)
            rounds += 1

    task = tasks.spawn(stubborn())
    await asyncio.sleep(0)
    async with asyncio.timeout(5):
        await tasks.end_all()
    assert task.done()
    before = rounds
    await asyncio.sleep(0.05)
    assert rounds == before
    over = True


async def test_nothing_begins_after_the_end() -> None:
    tasks = running()
    await tasks.end_all()
    with pytest.raises(RuntimeError, match="has ended"):
        tasks.spawn(swallow(asyncio.CancelledError))
