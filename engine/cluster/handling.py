"""One message and its handler: decode, run, answer.

Runs in a task of ``cluster.entity_host``, started by the mailbox of a ``cluster.instance``.
"""

import asyncio
import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engine.cluster.answering import Chunks
from engine.cluster.call import CURRENT, Call
from engine.cluster.message import Message
from engine.cluster.rpc import RpcDefinition
from engine.cluster.state import Working
from engine.cluster.stream import Moved
from engine.cluster.write import Overtaken, write
from engine.core.errors import EntityDefect, ErrorDetails, InvalidPayload, OwnershipLost
from engine.core.reply import Defect, Exit, Failure, Interrupted, Success
from engine.storage.entities import StateWrite
from engine.storage.protocol import BadBatch, Commit, StreamPosition

if TYPE_CHECKING:
    from engine.cluster.instance import Instance

log: logging.Logger = logging.getLogger(__name__)

REPLACE_STATE = "$state"
"""The reserved tag that replaces an entity's state: ``{"version": expected, "value": …}``; its
answer is the new version."""


class Handling:
    """What becomes of one message in one instance."""

    __slots__ = ("_chunks", "_instance", "_message", "_rpcs", "_sequence", "_working")

    def __init__(
        self, instance: "Instance", message: Message, rpcs: Mapping[str, RpcDefinition]
    ) -> None:
        self._instance = instance
        self._message = message
        self._rpcs = rpcs
        self._working: Working | None = None
        self._chunks: Chunks = ()
        self._sequence = 0

    async def run(self) -> None:
        """Handle the message and send its exit. Cancelled from outside, it sends nothing: the
        message is delivered again, here or to the shard's next owner."""
        message, instance = self._message, self._instance
        try:
            position = await self._position()
            message.begun = message.tried = True
            exit = await self._exit(position)
            change = self._change()
        except EntityDefect as error:
            instance.broke(message, error)
            return
        except Moved:
            return
        except InvalidPayload as error:
            exit, change = Failure(ErrorDetails.of(error)), None
        if not isinstance(exit, Success):
            change = None
        if change is None and instance.cell is not None and not message.readonly:
            instance.cell.roll_back()
        instance.worked()
        if message.answered:
            return  # it has not heeded the loss of its shard, and its caller was told of that
        try:
            await self._answer(exit, change)
        except OwnershipLost:
            log.info(
                "a reply came after its shard was lost; the next owner handles the request again",
                extra={"request_id": message.id, "shard": str(message.shard.id)},
            )

    async def _answer(self, exit: Exit, change: StateWrite | None) -> None:
        message, cell = self._message, self._instance.cell
        message.handled = True
        if change is None:
            self._send(exit)
            return
        assert self._working is not None
        assert cell is not None
        try:
            if message.row is None:  # nothing of it is stored but what it changed
                commit = Commit(shard=message.shard.id, states=[change])
                await write(self._instance.host.delivery, message.shard, commit)
                self._send(exit)
            else:
                await self._send(exit, change)
        except Overtaken:
            cell.roll_back()
        except BadBatch as error:
            cell.roll_back()
            if message.row is None:
                self._send(Defect(ErrorDetails("BadBatch", f"the state was refused: {error}")))
        else:
            cell.saved(change, self._working)

    def _send(self, exit: Exit, change: StateWrite | None = None) -> "asyncio.Future[None]":
        message = self._message
        message.answered = True
        done = message.answers.end(exit, chunks=self._chunks, sequence=self._sequence, state=change)
        self._instance.host.ended(message, done)
        return done

    async def _position(self) -> StreamPosition:
        """Behind which chunks its answer begins; before that is known nothing of it has begun."""
        tag = self._message.envelope.tag
        rpc = self._rpcs.get(tag)
        if tag == REPLACE_STATE or (rpc is not None and not rpc.stream):
            return StreamPosition()
        return await self._instance.host.streams.position(self._message)

    async def _exit(self, position: StreamPosition) -> Exit:
        """Run the handler. Raises what is a defect of the entity, and its own cancellation."""
        envelope = self._message.envelope
        if envelope.tag == REPLACE_STATE:
            return self._replace_state()
        self._sequence = position.next_sequence
        rpc = self._rpcs.get(envelope.tag)
        if rpc is None:
            return _no_handler(self._instance.host.name, envelope.tag, self._rpcs)
        try:
            args, kwargs = rpc.signature.decode(envelope.payload)
        except InvalidPayload as error:
            return Defect(ErrorDetails.of(error))
        if self._instance.cell is not None:
            self._working = self._instance.cell.working(readonly=self._message.readonly)
        CURRENT.set(
            Call(
                envelope=envelope,
                entity=self._instance.entity,
                state=self._working,
                next_sequence=position.next_sequence,
            )
        )
        try:
            if rpc.stream:
                return await self._stream(rpc, args, kwargs, position)
            return await self._call(rpc, args, kwargs)
        except asyncio.CancelledError as error:
            return self._cancelled(error)
        except (EntityDefect, Moved, KeyboardInterrupt, GeneratorExit):
            raise
        except BaseException as error:  # noqa: BLE001 -- whatever a handler raises is its reply
            return Failure(ErrorDetails.of(error))

    async def _call(self, rpc: RpcDefinition, args: list[Any], kwargs: dict[str, Any]) -> Exit:
        result = await rpc.function(self._instance.entity, *args, **kwargs)
        codec = rpc.signature.result
        return Success(self._instance.host.limit.check(codec.encode(result), codec.what))

    async def _stream(
        self,
        rpc: RpcDefinition,
        args: list[Any],
        kwargs: dict[str, Any],
        position: StreamPosition,
    ) -> Exit:
        generator = rpc.function(self._instance.entity, *args, **kwargs)
        streams = self._instance.host.streams
        with streams.producing(self._message, rpc, generator, position) as producer:
            try:
                return await producer.run()
            finally:
                self._chunks, self._sequence = producer.rest, producer.end

    def _cancelled(self, error: asyncio.CancelledError) -> Exit:
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            return Failure(ErrorDetails.of(error))  # of the handler's own making
        if not self._message.interrupted:
            raise error
        while task.cancelling():
            task.uncancel()
        return Interrupted()

    def _change(self) -> StateWrite | None:
        """What the handler did to the state; ``InvalidPayload`` when that may not be."""
        cell, working = self._instance.cell, self._working
        if cell is None or working is None:
            return None
        host = self._instance.host
        if not self._message.readonly:
            change = cell.change(working, host.name, self._instance.id)
            if change is not None:
                host.limit.check(change.payload, "the state of", host.name)
            return change
        if cell.changed(working):
            raise InvalidPayload(
                f"{host.name}.{self._message.envelope.tag} is readonly and has changed the state,"
                " which was not saved; take readonly=True off it, or change a copy"
            )
        return None

    def _replace_state(self) -> Exit:
        cell = self._instance.cell
        if cell is None:
            return _refusal("NotFound", f"{self._instance.host.name} has no State to replace")
        try:
            asked = json.loads(self._message.envelope.payload)
            version, value = int(asked["version"]), json.dumps(asked["value"]).encode()
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InvalidPayload(
                f'a new state is sent as {{"version": N, "value": ...}}: {error!r}'
            ) from error
        if version != cell.version:
            return _refusal(
                "VersionConflict",
                f"the state is at version {cell.version}, not {version}; look at it again",
            )
        self._working = cell.replacing(value)
        changed = cell.change(self._working, self._instance.host.name, self._instance.id)
        return Success(str(cell.version if changed is None else changed.version).encode())


def _no_handler(name: str, tag: str, rpcs: Mapping[str, RpcDefinition]) -> Exit:
    return Defect(
        ErrorDetails("NotRegistered", f"{name} has no handler {tag!r}; it has {sorted(rpcs)}")
    )


def _refusal(kind: str, message: str) -> Exit:
    return Failure(ErrorDetails(kind, message))
