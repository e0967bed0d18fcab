"""The code a runner has: of each workflow the versions that were registered.

Asked by ``workflow.host`` for the code of an execution; one whose version is not here waits.
"""

from collections.abc import Sequence, Set
from typing import Any

from engine.core.errors import ConfigurationError
from engine.storage.protocol import UNDECIDED, StoredExecution
from engine.workflow.definition import Workflow, WorkflowDefinition, definition_of

Code = tuple[WorkflowDefinition, Workflow[Any, Any]]


class Codes:
    """Registered workflows by name and version."""

    def __init__(self) -> None:
        self._codes: dict[str, dict[int, Code]] = {}

    def register(self, prototype: Workflow[Any, Any]) -> WorkflowDefinition:
        """``ConfigurationError`` when that version is here already."""
        definition = definition_of(type(prototype))
        definition.check()
        versions = self._codes.setdefault(definition.name, {})
        if definition.version in versions:
            raise ConfigurationError(
                f"two workflows are registered as version {definition.version} of"
                f" {definition.name!r}; give one another name, or another 'version'"
            )
        versions[definition.version] = definition, prototype
        return definition

    @property
    def names(self) -> Set[str]:
        """Of the workflows, whichever their versions."""
        return self._codes.keys()

    @property
    def newest(self) -> Sequence[WorkflowDefinition]:
        """Of each workflow the newest version."""
        return [versions[max(versions)][0] for versions in self._codes.values()]

    def of(self, execution: StoredExecution) -> Code | None:
        """The code that an execution is pinned to; the newest if it is to none. None: it is not
        here."""
        if execution.version == UNDECIDED:
            return self.newest_of(execution.workflow)
        return self._codes.get(execution.workflow, {}).get(execution.version)

    def newest_of(self, workflow: str) -> Code | None:
        """The code that a new execution would run; None: it is not here."""
        versions = self._codes.get(workflow)
        return versions[max(versions)] if versions else None


def needed(workflow: str, version: int) -> str:
    """What code an execution waits for that is not here, in words; its rows are parked under it."""
    return workflow if version == UNDECIDED else f"{workflow}, version {version}"
