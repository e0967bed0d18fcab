"""Forked processes end as started ones do, and none outlives who had them forked."""

import asyncio
import os
import signal
from functools import partial
from pathlib import Path

from tests.chaos.forks import Forked, forks
from tests.eventually import eventually


async def test_each_has_its_own_streams_and_is_told_of_as_it_ended(tmp_path: Path) -> None:
    async with forks("json.tool", tmp_path / "forks.log") as made:
        with (tmp_path / "errors.log").open("wb") as errors:
            fork = partial(made.fork, "--compact", variables={}, stderr=errors)
            good, bad, killed, left = await asyncio.gather(fork(), fork(), fork(), fork())
        killed.kill()
        assert await said(good, b"[1,\n2]") == b"[1,2]\n"
        assert await said(bad, b"[1,") == b""
        assert [await each.wait() for each in (good, bad, killed)] == [0, 1, -signal.SIGKILL]
        assert left.returncode is None
        assert len({each.pid for each in (good, bad, killed, left)}) == 4

    await eventually(lambda: not exists(left.pid))
    assert "Expecting" in (tmp_path / "errors.log").read_text()
    killed.stdin.close()
    left.stdin.close()


async def said(process: Forked, told: bytes) -> bytes:
    process.stdin.write(told)
    process.stdin.close()
    return await process.stdout.read()


def exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
