"""``consume``: the iterator that a call of a stream handler gives its caller.

The request leaves through the process's ``outbox``; chunks come by its ``replies``, and what was
taken is told by its ``acknowledger``.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, assert_never

from engine.cluster.handle import EntityCall
from engine.cluster.stream_reader import StreamReader
from engine.core.envelope import Interrupt
from engine.core.errors import ErrorDetails, RequestFailed, StreamTaken
from engine.core.ids import EntityAddress, Snowflake
from engine.core.reply import Defect, Failure, Interrupted, ReplyChunk, Success, Terminated
from engine.node import Node
from engine.storage.protocol import Saved, SaveOutcome

Save = Callable[[EntityCall, Snowflake], Awaitable[Saved]]


async def consume(node: Node, call: EntityCall, save: Save) -> AsyncGenerator[Any, None]:
    """Send the call when the first element is asked for, then give its elements in order.

    With a key that was used before it goes on behind what has been taken of that stream.
    ``RequestFailed`` after the elements when the handler failed. Closing it early interrupts the
    stream, unless somebody else has begun it and this one took nothing of it; ``StreamTaken`` when
    somebody else iterates over it.
    """
    await node.know(call.entity.shard_group)
    address = call.address(node.storage.shards_in)
    own_id = request_id = await node.outbox.next_id()
    mine = True
    with ExitStack() as stack:
        try:
            reader = stack.enter_context(_open(node, call, request_id, address, new=True))
            saved = await save(call, request_id)
            request_id = saved.request_id
            mine = request_id == own_id  # else whoever has sent it may be taking its elements
            if saved.outcome is not SaveOutcome.CREATED:
                stack.close()
                reader = stack.enter_context(_open(node, call, request_id, address))
            while isinstance(reply := await reader.take(), ReplyChunk):
                yield call.rpc.signature.result.decode(reply.value)
                mine = True  # who asks for more acknowledges what came before
            mine = False
            if not isinstance(reply.exit, Success):
                raise request_failed(call, reply.exit)
        except StreamTaken:
            mine = False
            raise
        finally:
            if mine:
                _abandon(node, call, request_id, address)


def request_failed(
    call: EntityCall, exit: Failure | Defect | Interrupted | Terminated
) -> RequestFailed:
    """What a caller gets to see of an exit that is not a success."""
    name = f"{call.entity.name}/{call.id} {call.rpc.name}"
    match exit:
        case Failure(error) | Defect(error):
            return RequestFailed(f"{name} failed: {error}", error)
        case Interrupted(reason) | Terminated(reason):
            details = ErrorDetails(type(exit).__name__, reason)
            return RequestFailed(f"{name} was ended: {reason}", details)
        case _:
            assert_never(exit)


def _open(
    node: Node,
    call: EntityCall,
    request_id: Snowflake,
    address: EntityAddress,
    *,
    new: bool = False,
) -> AbstractContextManager[StreamReader]:
    """A reader; with ``new``, of a request that is about to be saved with ``wait``."""
    stored = partial(node.acknowledger.acknowledge, request_id, address.shard)
    sent = partial(node.mail.volatile.acknowledge, request_id)
    return node.replies.stream(
        request_id,
        first=0 if new else None,
        registered=new,
        acknowledge=stored if call.rpc.persisted else sent,
    )


def _abandon(node: Node, call: EntityCall, request_id: Snowflake, address: EntityAddress) -> None:
    if call.rpc.persisted:
        node.acknowledger.abandon(Interrupt(request_id=request_id, address=address))
    else:
        node.mail.volatile.interrupt(request_id)
