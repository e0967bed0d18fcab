"""Statements of a process, timed where they are awaited; for ``bench.timeline``."""

import atexit
import json
import os
import re
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

from engine.storage.session import Session

VARIABLE = "OUTLAST_BENCH_TIMELINE"
_NAME = re.compile(r"-- name: (\w+)")


class Span(NamedTuple):
    """A statement or an operation, in seconds of the machine's monotonic clock."""

    name: str
    begun: float
    ended: float


@contextmanager
def noted() -> Generator[list[Span]]:
    """Inside, each statement of this process adds to the list."""
    spans: list[Span] = []
    fetch = Session.fetch

    async def timed(session: Session, query: str, *args: Any, **options: Any) -> Any:
        begun = perf_counter()
        try:
            return await fetch(session, query, *args, **options)
        finally:
            named = _NAME.match(query)
            spans.append(Span(named[1] if named else query, begun, perf_counter()))

    setattr(Session, "fetch", timed)  # noqa: B010 -- what it overrides has many signatures
    try:
        yield spans
    finally:
        setattr(Session, "fetch", fetch)  # noqa: B010


def note_if_told() -> None:
    """For a runner: note its statements to the end, and write them down then."""
    if path := os.environ.get(VARIABLE):
        stack = ExitStack()
        spans = stack.enter_context(noted())

        def write() -> None:
            Path(path).write_text(json.dumps(spans))
            stack.close()

        atexit.register(write)
