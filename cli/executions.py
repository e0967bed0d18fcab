"""Find the execution a command line names: ``Fulfil/o-42``, or ``o-42`` where that is unique."""

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from cli.exits import CommandError, ExitCode, UsageError

if TYPE_CHECKING:
    from engine.storage.protocol import Storage, StoredExecution

ExecutionId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="The execution: Workflow/key, or its key where no other workflow has the same.",
        show_default=False,
    ),
]


def name_of(execution: "StoredExecution") -> str:
    """How an execution is printed, and can be typed in again."""
    return f"{execution.workflow}/{execution.execution_id}"


async def find(storage: "Storage", id: str) -> "StoredExecution":
    """The execution meant. Not found: exit code 3; several of that key: exit code 2."""
    workflow, slash, key = id.partition("/")
    if slash and workflow and key:
        found = await storage.find(workflow, key)
        if found is not None:
            return found
    candidates = await _namesakes(storage, id)
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(name_of(each) for each in candidates)
        raise UsageError(f"{id!r} is the key of several executions; name one of them: {names}")
    raise CommandError(
        f"there is no execution {id!r}: 'outlast ls' lists those there are", ExitCode.NOT_FOUND
    )


async def _namesakes(storage: "Storage", key: str) -> "Sequence[StoredExecution]":
    """The executions with this key, whatever their workflow."""
    workflows = await storage.workflows()
    found = await asyncio.gather(*(storage.find(workflow, key) for workflow in workflows))
    return [each for each in found if each is not None]
