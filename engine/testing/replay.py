"""Replay a history against code, to learn whether it still fits."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from engine.core.errors import ConfigurationError, NonDeterminism
from engine.core.journal import JournalKind
from engine.core.outcome import JournalEvent
from engine.core.status import Status
from engine.history import History, read_histories
from engine.storage.protocol import LoadedExecution
from engine.workflow.body import Body, ContinueAsNew
from engine.workflow.codes import Code, Codes, needed
from engine.workflow.definition import Workflow
from engine.workflow.replay import replayed, unended


async def replay(history: list[JournalEvent], *prototypes: Workflow[Any, Any]) -> None:
    """Run the workflow's body against a history; no step runs and nothing is written.

    ``history`` is what a client's ``execution.history()`` gave, or one of ``load_histories``, of
    an execution that runs still or has ended. Of several versions of the workflow each run meets
    the one it was of; it is a ``ConfigurationError`` when that is not among them. Raises
    ``NonDeterminism`` with what the journal holds (``expected``), what the code does instead
    (``found``) and the line (``where``).
    """
    if not isinstance(history, History):
        raise ConfigurationError(
            "this list does not know the execution it is of: pass what a client's"
            " execution.history() returned, not a copy, or a history of load_histories(path)"
        )
    codes = Codes()
    for prototype in prototypes:
        codes.register(prototype)
    runs = history.runs
    for loaded, successor in zip(runs, [*runs[1:], None], strict=False):  # it may have no run yet
        if successor is not None and _repaired(successor):
            continue  # it stood where its code failed, and the repair goes on with its journal
        code = codes.of(loaded.execution)
        if code is None:
            wanted = needed(history.workflow, loaded.execution.version)
            given = (needed(each.name, each.version) for each in prototypes)
            raise ConfigurationError(
                f"run {loaded.execution.run} of the history is of {wanted}, and what is given is"
                f" {' and '.join(given) or 'nothing'}: pass an object of that class too"
            )
        await _outside_of_tasks(partial(_replay, code, loaded, history))


def load_histories(path: str | Path) -> list[History]:
    """The histories in a file that ``outlast history ID --export`` wrote, or several of them."""
    with Path(path).open(encoding="utf-8") as lines:
        return list(read_histories(lines))


async def _outside_of_tasks(work: Callable[[], None]) -> None:
    """A body's loop is driven from the host's, not from one of its tasks."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def run() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 -- it is the caller's
            done.set_exception(error)
        else:
            done.set_result(None)

    loop.call_soon(run)
    await done


def _repaired(loaded: LoadedExecution) -> bool:
    return any(row.kind is JournalKind.REPAIRED for row in loaded.journal)


def _replay(code: Code, loaded: LoadedExecution, history: History) -> None:
    last = loaded.execution.run == history.recorded.execution.run
    with replayed(*code, loaded) as body:
        if not last:
            if not body.done:
                raise unended(body, f"run {loaded.execution.run}, which continued as a new one")
            return
        status = loaded.execution.status
        if status.finished and status is not Status.TERMINATED:
            _compare_ends(body, status)


def _compare_ends(body: Body, status: Status) -> None:
    if not body.done:
        raise unended(body, "the execution")
    if not body.task.done() or body.task.cancelled() or status is not Status.SUCCEEDED:
        return
    error = body.task.exception()
    if error is None:
        return
    continues = isinstance(error, ContinueAsNew)
    raise NonDeterminism(
        expected="the end of the execution with a result",
        found="continues as new" if continues else f"raises {type(error).__name__}: {error}",
        where=_raised_at(error),
    )


def _raised_at(error: BaseException) -> str:
    """The innermost line of user code in a traceback."""
    place, trace = "unknown line", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if not trace.tb_frame.f_globals.get("__name__", "").startswith(("engine.", "asyncio.")):
            place = f"{code.co_filename}:{trace.tb_lineno} in {code.co_qualname}"
        trace = trace.tb_next
    return place
