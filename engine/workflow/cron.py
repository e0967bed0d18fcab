"""``WorkflowCron``: a workflow that is started at the instants of a schedule.

Kept by the owner of its shard like any cron (``cluster.cron_keeper``); what it starts is an
execution as any client would start it.
"""

import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, Generic, TypeVar

from engine.cluster.cron import CronDefinition, cron_address
from engine.cluster.instants import instant_text
from engine.cluster.timetable import Rules, Timetable
from engine.core.envelope import EnvelopeRequest, dedup_key
from engine.core.errors import ConfigurationError
from engine.core.ids import EntityAddress, EntityId, EntityType, Snowflake, shard_of
from engine.core.names import entity_id
from engine.storage.protocol import ExecutionStart, SaveRequest
from engine.workflow.definition import Workflow, WorkflowDefinition, definition_of
from engine.workflow.tags import RUN

In = TypeVar("In")
Out = TypeVar("Out")


class WorkflowCron(Timetable, Generic[In, Out]):
    """Base class of crons that start ``workflow`` once for each instant of ``schedule``.

    The execution's id is ``key(at, request)``, else the cron's name and the instant. A run, for
    ``overlap``, is an execution from its start to its end.

    >>> import asyncio
    >>> from datetime import timedelta
    >>> from engine.testing import TestCluster
    >>> class Report(Workflow[str, str]):
    ...     async def execute(self, request: str) -> str:
    ...         return f"the report of {request}"
    >>> class Daily(WorkflowCron[str, str]):
    ...     schedule = "0 6 * * *"
    ...     workflow = Report
    ...
    ...     def request(self, at: datetime) -> str:
    ...         return f"{at:%A}"
    >>> async def main() -> str:
    ...     async with TestCluster(Report(), Daily()) as cluster:
    ...         await cluster.advance(timedelta(days=1))
    ...         return await cluster.client.execution(Report, "Daily/2026-01-01T06:00:00Z").join()
    >>> asyncio.run(main())
    'the report of Thursday'
    """

    workflow: type[Workflow[In, Out]]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "workflow"):
            definition_of(cls.workflow)

    def request(self, at: datetime) -> In:
        """The request to start the workflow with for the instant ``at`` (aware, in UTC).

        Override it. It may be called again for an instant that was started before; an instant for
        which it raises is left out, and can be made up for with a backfill.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define request()")

    def key(self, at: datetime, request: In) -> str:
        """The execution's id: one per instant. With a key of your own, instants that have the same
        one share an execution."""
        return f"{self.name}/{instant_text(at)}"


def workflow_of(cron: WorkflowCron[Any, Any]) -> WorkflowDefinition:
    """What a cron starts; ``ConfigurationError`` when it does not say."""
    if not hasattr(cron, "workflow"):
        raise ConfigurationError(
            f"cron {cron.name} has no workflow; give it one, as in workflow = Fulfil"
        )
    return definition_of(cron.workflow)


def workflow_cron(
    cron: WorkflowCron[Any, Any], *, shards_in: Callable[[str], int]
) -> CronDefinition:
    """The definition of a cron that starts a workflow."""
    definition = workflow_of(cron)

    def start(request_id: Snowflake, at: datetime) -> SaveRequest:
        request = definition.request.validate(cron.request(at))
        id = entity_id(cron.key(at, request), what=f"the key of {cron.name}")
        shard = shard_of(definition.group, shards_in(definition.group), definition.name, id)
        attributes = {"cron": cron.name, "instant": instant_text(at)}
        return SaveRequest(
            envelope=EnvelopeRequest(
                request_id=request_id,
                address=EntityAddress(shard, EntityType(definition.name), EntityId(id)),
                tag=RUN,
                payload=definition.request.encode(request),
                key=dedup_key(RUN, definition.name, id),
            ),
            execution=ExecutionStart(attributes=json.dumps(attributes).encode()),
        )

    return CronDefinition(
        name=cron.name,
        shard=cron_address(cron, shards_in(cron.shard_group)).shard,
        rules=Rules.of(cron),
        starts=f"workflow {definition.name}",
        start=start,
    )
