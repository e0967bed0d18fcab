"""``outlast run --processes``: several runners that start, are replaced and end together."""

import asyncio
import errno
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from cli import processes
from tests.cli.terminal import do, ended, script
from tests.cli.watched import running
from tests.eventually import eventually


async def runners(dsn: str) -> list[dict[str, Any]]:
    return (await do("runners", "--all", dsn=dsn)).lines


async def living(dsn: str) -> set[int]:
    return {row["pid"] for row in await runners(dsn) if row["state"] == "live"}


async def test_one_that_is_lost_is_replaced_and_all_drain(project: Path, dsn: str) -> None:
    with running("run", "orders:app", "--processes", "2", dsn=dsn, cwd=project) as run:

        async def both() -> bool:
            return len(await living(dsn)) == 2

        async def another() -> bool:
            return len(await living(dsn) - first) == 1

        await eventually(both, timeout=60)
        first = await living(dsn)
        lost = min(first)
        os.kill(lost, signal.SIGKILL)
        run.says("a runner process ended with exit code -9; another takes its place")
        await eventually(another, timeout=60)
        end = run.stopped(signal.SIGINT)

    assert end.code == 0
    assert run.process.pid not in first
    states = {row["pid"]: row["state"] for row in await runners(dsn)}
    assert [state for pid, state in states.items() if pid != lost] == ["ended", "ended"]


async def test_they_end_with_a_parent_that_was_killed(project: Path, dsn: str) -> None:
    with running("run", "orders:app", "--processes", "2", dsn=dsn, cwd=project) as run:
        run.says("runner serves")
        run.process.kill()

        async def gone() -> bool:
            return all(row["state"] == "ended" for row in await runners(dsn))

        await eventually(gone, timeout=60)


def test_an_app_that_cannot_be_run_ends_them_all_with_its_exit_code(
    project: Path, dsn: str
) -> None:
    end = ended(script("run", "nope:app", "--processes", "2", dsn=dsn, cwd=project))

    assert end.code == 2
    assert "there is no module 'nope'" in end.err


async def test_one_that_cannot_be_started_now_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processes, "_PAUSE", 0.01)
    keeper, tries = processes.Processes(["orders:app"], number=1), 0

    async def start(*words: str, environment: object) -> asyncio.subprocess.Process:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise OSError(errno.ENOMEM, "Cannot allocate memory")
        os.kill(os.getpid(), signal.SIGTERM)
        return await asyncio.create_subprocess_exec("sleep", "60")

    monkeypatch.setattr(processes, "start_runner", start)
    async with asyncio.timeout(30):
        await keeper.run()

    assert tries == 3
    assert capsys.readouterr().err.count("cannot be started") == 2
