"""Let an execution that has ended badly go on, or go on otherwise from a step: ``retry``, ``fork``.

Under ``client_execution`` and the CLI; needs neither the workflow's code nor a runner.
``workflow.repair`` says what of the journal is kept.
"""

from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from engine.by_name import Message, address_of, load, order_of, reopen, tell
from engine.core.envelope import EnvelopeRequest, dedup_key
from engine.core.errors import AlreadyStarted, NotFound
from engine.core.ids import Snowflake
from engine.core.journal import JournalKind
from engine.core.names import entity_id
from engine.core.status import Status
from engine.storage.protocol import ExecutionStart, LoadedExecution, SaveRequest, StoredExecution
from engine.workflow.repair import forked, retried
from engine.workflow.tags import RETRY, RUN, begun_anew, encode_order

if TYPE_CHECKING:
    from engine.node import Node


async def retry(node: "Node", execution: StoredExecution) -> None:
    """Let an execution go on from its last good step: one that failed or was ended, in a new run,
    and one that is blocked, wherever it is. It has as much time again as it was started with.
    No-op for one that goes on anyway.

    ``NotFound`` when it has succeeded, ``ConfigurationError`` when its compensations have run.
    """
    name = f"{execution.workflow}/{execution.execution_id}"
    if execution.status is Status.SUCCEEDED:
        raise NotFound(f"{name} has ended well; fork it to run a part of it again")
    if not execution.status.finished:
        await tell(
            node,
            Message(
                workflow=execution.workflow,
                group=execution.shard.group,
                id=execution.execution_id,
                tag=RETRY,
                payload=encode_order("", node.settings.author),
            ),
        )
        return
    loaded = await load(node, execution.request_id)
    rows = retried(loaded, await _children(node, loaded), order=order_of(node))
    envelope = loaded.envelope
    headers = begun_anew(envelope.headers, node.clock.now())
    await reopen(node, replace(envelope, headers=headers), loaded, rows)


async def fork(
    node: "Node",
    execution: StoredExecution,
    from_step: str | int,
    *,
    key: str,
    request: bytes | None = None,
) -> Snowflake:
    """Start another execution that has done already what this one had before a step, or a position
    of its journal; with ``request``, for another request. The id of its run request.

    ``NotFound`` for an unknown step, ``AlreadyStarted`` when the key is taken.
    """
    key = entity_id(key, what="the key")
    loaded = await load(node, execution.request_id)
    request_id = await node.outbox.next_id()
    payload = loaded.envelope.payload if request is None else request
    rows = forked(
        loaded,
        await _children(node, loaded),
        from_step=from_step,
        request_id=request_id,
        request=request,
        order=order_of(node),
    )
    workflow, group = execution.workflow, execution.shard.group
    await node.know(group)
    envelope = EnvelopeRequest(
        request_id=request_id,
        address=address_of(node, workflow=workflow, group=group, id=key),
        tag=RUN,
        payload=payload,
        key=dedup_key(RUN, workflow, key),
        trace=loaded.envelope.trace,
    )
    start = ExecutionStart(version=execution.version, attributes=execution.attributes)
    began: datetime = execution.started_at or execution.created_at
    save = SaveRequest(envelope=envelope, execution=start)
    if not await node.storage.fork(save, started_at=began, journal=rows):
        raise AlreadyStarted(f"{workflow}/{key} was started before; fork under another key")
    node.ring_shards([envelope.address.shard])
    return request_id


async def _children(node: "Node", loaded: LoadedExecution) -> dict[Snowflake, str]:
    calls = [row.source for row in loaded.journal if row.kind is JournalKind.CALL]
    found = await node.storage.load([source for source in calls if source is not None])
    return {each.execution.request_id: each.execution.execution_id for each in found}
