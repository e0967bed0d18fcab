"""A runner as a process of its own, for the commands that keep some."""

import asyncio
import sys
from collections.abc import Mapping


async def start_runner(*words: str, environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    """``outlast run`` with these words. In a session of its own, so that a Ctrl-C reaches it once,
    by whoever started it; it stops when its standard input closes, however that one ends."""
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-P", "-m", "cli", "run", *words, "--while-stdin-is-open"),
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
