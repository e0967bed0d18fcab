"""Run a workflow once for each thing it writes, with a crash of its runner just there."""

import asyncio
import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar, overload

from engine.core.clock import monotonic
from engine.core.errors import ConfigurationError, ExecutionFailed
from engine.core.outcome import Failed, Interrupted, JournalEvent, Pending, Succeeded, Terminated
from engine.runner import Registered
from engine.storage.memory_database import Fault
from engine.testing.clock import VirtualClock
from engine.testing.cluster import TestCluster
from engine.testing.stub import Stub
from engine.workflow.definition import Workflow
from engine.workflow.execution import Execution

In = TypeVar("In")
Out = TypeVar("Out")
Drive = Callable[[TestCluster, Execution[Out]], Awaitable[object]]
_STILL: Final = 10.0
_IN_ALL: Final = 60.0
_RECOVERY: Final = 0.001


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashOutcome(Generic[Out]):
    """How one of the runs ended.

    ``crash`` says where the crash was, None for the run without one; ``workflow`` is the object
    that run was given, with whatever its steps have left in it.
    """

    crash: str | None
    ended: Succeeded[Out] | Failed | Interrupted | Terminated
    history: list[JournalEvent]
    workflow: Any

    @property
    def result(self) -> Out:
        """What it gave; ``ExecutionFailed`` when it gave none."""
        match self.ended:
            case Succeeded(value):
                return value
            case Failed(error):
                raise ExecutionFailed(f"{self}: {error}", error)
            case _:
                raise AssertionError(f"{self}: it was ended")

    def __str__(self) -> str:
        return f"the run with a crash {self.crash}" if self.crash else "the run without a crash"


@overload
def crash_at_every_step(
    workflow: Workflow[In, Out],
    request: In,
    /,
    *others: Registered,
    drive: Drive[Out] | None = None,
    stubs: Sequence[Stub] = (),
    limit: int = 500,
) -> AsyncGenerator[CrashOutcome[Out]]: ...
@overload
def crash_at_every_step(
    workflow: Callable[[], Workflow[In, Out]],
    request: In,
    /,
    *others: Registered,
    drive: Drive[Out] | None = None,
    stubs: Sequence[Stub] = (),
    limit: int = 500,
) -> AsyncGenerator[CrashOutcome[Out]]: ...
async def crash_at_every_step(
    workflow: Any,
    request: Any,
    /,
    *others: Registered,
    drive: Drive[Any] | None = None,
    stubs: Sequence[Stub] = (),
    limit: int = 500,
) -> AsyncGenerator[CrashOutcome[Any]]:
    """Run an execution again and again, in memory, each time with a crash at another place.

    First without any; then once before and once after each write of its journal: a crash before
    it runs the step anew whose result it held, a crash after it goes on from there. Time moves on
    by itself whenever all is still. Each run has a database and deep copies of ``workflow`` and
    ``others`` of its own; give a function that makes the workflow where it cannot be copied.

    ``drive`` is called with the cluster and the execution, to do what the execution waits for:
    resolve, signal. ``TimeoutError`` when a run does not end, with what it waits for;
    ``ConfigurationError`` when there are more than ``limit`` places.
    """

    async def run(fault: Fault | None, place: int) -> tuple[CrashOutcome[Any], bool]:
        prototype: Workflow[Any, Any] = _fresh(workflow)
        cluster = TestCluster(prototype, *[_fresh(each) for each in others], stubs=stubs, lanes=1)
        crash = None
        if fault is not None:
            before = fault is Fault.BEFORE_COMMIT
            crash = f"{'before' if before else 'after'} write {place + 1}"
            cluster.fail_next_flush(fault, after=place)
        async with cluster:
            execution = await cluster.client.start(type(prototype), request)
            ended = await _end(cluster, execution, drive)
            history = await execution.history()
        assert cluster.database is not None
        outcome = CrashOutcome(crash=crash, ended=ended, history=history, workflow=prototype)
        return outcome, not cluster.database.faults_ahead

    outcome, _ = await run(None, 0)
    yield outcome
    for place in range(limit):
        for fault in (Fault.BEFORE_COMMIT, Fault.AFTER_COMMIT):
            outcome, crashed = await run(fault, place)
            if not crashed:
                return
            yield outcome
    raise ConfigurationError(
        f"there are more than {limit} places to crash at: give a higher limit=, or a shorter run"
    )


async def _end(
    cluster: TestCluster, execution: Execution[Out], drive: Drive[Out] | None
) -> Succeeded[Out] | Failed | Interrupted | Terminated:
    """Let time move on until the execution has ended, and say how."""
    clock = cluster.clock
    assert isinstance(clock, VirtualClock)
    async with asyncio.TaskGroup() as group:
        driver = None if drive is None else group.create_task(_drive(drive, cluster, execution))
        began = still_since = monotonic()
        while isinstance(ended := await execution.poll(), Pending):
            await clock.settle()
            # Not while the runner takes its shards again: what is due then is for it to find.
            owns = len(cluster.runner.epochs) == cluster.settings.shards_per_group
            if owns and monotonic() - began <= _IN_ALL and await clock.advance_to_next():
                still_since = monotonic()
                continue
            if monotonic() - still_since > _STILL or monotonic() - began > _IN_ALL:
                info = await execution.describe()
                raise TimeoutError(
                    f"{info.workflow}/{info.id} does not end, though time has moved on: it is"
                    f" {info.status}, {info.why}; do what it waits for in drive="
                )
            await asyncio.sleep(_RECOVERY)
        if driver is not None:
            driver.cancel()
    return ended


async def _drive(drive: Drive[Out], cluster: TestCluster, execution: Execution[Out]) -> None:
    await drive(cluster, execution)


def _fresh(made: Any) -> Any:
    """What a function makes, or a copy."""
    if callable(made):
        return made()
    try:
        return copy.deepcopy(made)
    except Exception as error:
        raise ConfigurationError(
            f"{type(made).__name__} cannot be copied for each run ({error}): give a function that"
            " makes it, as in crash_at_every_step(lambda: Fulfil(gateway()), order)"
        ) from error
