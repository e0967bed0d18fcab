"""Singletons and crons that a test gives to runners while they serve, under names of its own.

``made`` reads what the command ``register`` of ``tests.cluster.app`` was told; what they do is
noted under their names, as the cast's is.
"""

import asyncio
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from types import new_class
from typing import Any

from engine import Cron, Overlap, SingletonContext, Workflow, WorkflowCron
from tests.cluster.cast import Clerk, Stage

FAILURES = 5
"""So often one that is ``Weak`` fails before it does not."""


class Stubborn(Clerk):
    """Ends only when it is cancelled."""

    async def run(self, context: SingletonContext) -> None:
        try:
            await self.stage.note(self.name, "begins")
            await asyncio.Event().wait()
        finally:
            await self.stage.note(self.name, "ends")


class Weak(Clerk):
    """Notes how often it has failed so far, and fails; then it is as a ``Clerk``."""

    async def run(self, context: SingletonContext) -> None:
        await self.stage.note(self.name, f"failures {context.failures}")
        if context.failures < FAILURES:
            raise ConnectionError("not yet")
        await context.cancelled.wait()


class Noting(Cron):
    """Notes each instant that it runs for."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage

    async def run(self, at: datetime) -> None:
        await self.stage.note(self.name, at.isoformat())


class Held(Noting):
    """Notes when it begins and ends, and in between waits for the gate of its name."""

    async def run(self, at: datetime) -> None:
        await self.stage.note(self.name, f"begins {at.isoformat()}")
        try:
            await self.stage.pass_gate(self.name)
        finally:
            await self.stage.note(self.name, f"ends {at.isoformat()}")


class Report(Workflow[datetime, datetime]):
    async def execute(self, request: datetime) -> datetime:
        return request


class Reporting(WorkflowCron[datetime, datetime]):
    """Starts a workflow at each instant."""

    workflow = Report

    def __init__(self, _: Stage) -> None: ...

    def request(self, at: datetime) -> datetime:
        return at


Newcomer = Clerk | Noting | Reporting
KINDS: dict[str, type[Newcomer]] = {
    kind.__name__: kind for kind in (Clerk, Stubborn, Weak, Noting, Held, Reporting)
}
READ: dict[str, Callable[[Any], object]] = {
    "overlap": Overlap,
    "catch_up": lambda seconds: timedelta(seconds=seconds),
}


def made(stage: Stage, *, kind: str, name: str, **options: object) -> Sequence[Newcomer | Report]:
    """One of the kinds, with class attributes as plain values, and what it needs beside it."""
    attributes = {key: READ.get(key, lambda value: value)(each) for key, each in options.items()}
    body = {"name": name, **attributes}
    newcomer = new_class(name, (KINDS[kind],), exec_body=lambda namespace: namespace.update(body))
    return [newcomer(stage), *([Report()] if kind == Reporting.__name__ else [])]
