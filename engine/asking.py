"""A question to one of the engine's own entities, such as a cron's desk or a queue's.

From ``schedule`` and ``queues``, which know where to send it.
"""

from typing import TYPE_CHECKING, Any

from engine.cluster.rpc import rpc_of
from engine.core.envelope import EnvelopeRequest
from engine.core.errors import ErrorDetails, RequestFailed
from engine.core.ids import EntityAddress
from engine.core.reply import Defect, Failure, Success
from engine.storage.protocol import SaveOutcome

if TYPE_CHECKING:
    from engine.node import Node


async def ask(
    node: "Node",
    address: EntityAddress,
    method: object,
    arguments: dict[str, object],
    *,
    of: str,
    key: str | None = None,
) -> Any:
    """Send a call of ``method`` and give its answer; ``RequestFailed`` speaks of ``of``."""
    rpc = rpc_of(method)
    assert rpc is not None
    request_id = await node.outbox.next_id()
    envelope = EnvelopeRequest(
        request_id=request_id,
        address=address,
        tag=rpc.name,
        payload=rpc.signature.validated((), arguments),
        key=key,
    )
    with node.replies.expect(request_id) as answer:
        saved = await node.sender.send(envelope, wait=True)
        created = saved.outcome is SaveOutcome.CREATED
        exit = await (answer if created else node.replies.wait(saved.request_id))
    match exit:
        case Success(value):
            return rpc.signature.result.decode(value)
        case Failure(error) | Defect(error):
            raise RequestFailed(f"{rpc.name} of {of} failed: {error}", error)
        case ended:
            details = ErrorDetails(type(ended).__name__, ended.reason)
            raise RequestFailed(f"{rpc.name} of {of} was ended", details)
