"""Start and reach executions by the names they are stored under, with payloads already encoded.

Under ``client`` and ``execution``, which know the workflows' classes; used as it is by the CLI,
which does not.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from engine import admin
from engine.cluster.call import current_trace
from engine.cluster.served import served
from engine.core.codec import same_json
from engine.core.envelope import EnvelopeRequest, dedup_key
from engine.core.errors import (
    AlreadyStarted,
    ConfigurationError,
    NotFound,
    NotRegistered,
    PayloadConflict,
)
from engine.core.ids import EntityAddress, EntityId, EntityType, Snowflake, shard_of
from engine.core.journal import JournalRow
from engine.core.reply import RUNNER_LOST, Defect, Exit
from engine.core.status import Status
from engine.storage.protocol import (
    UNDECIDED,
    ExecutionStart,
    LoadedExecution,
    Saved,
    SaveOutcome,
    SaveRequest,
    Storage,
)
from engine.workflow.repair import Order, restarted
from engine.workflow.tags import RUN, deadline_headers
from engine.workflow.token import StepToken

if TYPE_CHECKING:
    from engine.node import Node

OnConflict = Literal["join", "fail", "restart-failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """All that starts an execution. ``group`` is the shard group of its workflow."""

    workflow: str
    group: str
    id: str
    payload: bytes
    deliver_at: datetime | None = None
    attributes: bytes | None = None
    timeout: timedelta | None = None
    """From when it is to begin until its time is over."""

    async def request(self, node: "Node", request_id: Snowflake | None = None) -> SaveRequest:
        """What is to be stored. ``request_id``: the id to use, whose reply is waited for."""
        node.limit.check(self.payload, "the request of", self.workflow)
        await node.know(self.group)
        envelope = EnvelopeRequest(
            request_id=request_id or await node.outbox.next_id(),
            address=address_of(node, workflow=self.workflow, group=self.group, id=self.id),
            tag=RUN,
            payload=self.payload,
            deliver_at=self.deliver_at,
            key=dedup_key(RUN, self.workflow, self.id),
            trace=current_trace(),
            headers=self.headers(self.deliver_at or node.clock.now()),
        )
        execution = ExecutionStart(attributes=self.attributes)
        return SaveRequest(envelope=envelope, execution=execution, wait=request_id is not None)

    def question(self) -> "Message":
        """What asks a runner whether the request fits; see ``query``."""
        return Message(
            workflow=self.workflow, group=self.group, id=self.id, tag=RUN, payload=self.payload
        )

    def headers(self, begins: datetime) -> dict[str, str]:
        return {} if self.timeout is None else deadline_headers(begins, self.timeout)


async def start(
    node: "Node",
    start: Start,
    *,
    on_conflict: OnConflict = "join",
    connection: object = None,
    expected: Snowflake | None = None,
) -> Saved:
    """Start an execution, or find the one with this id; returns once that is durable.

    ``PayloadConflict`` when it was started with another request; ``AlreadyStarted`` with
    ``on_conflict="fail"``; with ``"restart-failed"`` one that has ended, but not well, begins
    again. ``connection``: the caller's own, whose transaction decides.
    ``expected``: the request id to use, whose reply this process is waiting for already.
    """
    restarts = on_conflict == "restart-failed"
    if restarts and connection is not None:
        raise ConfigurationError(
            'on_conflict="restart-failed" begins again at once, whatever becomes of your'
            " transaction: leave `connection` or `on_conflict` out"
        )
    if connection is None and expected is None:
        await node.outbox.room()
    save = await start.request(node, expected)
    while True:
        if connection is None:
            saved = await node.outbox.save(save)
        else:
            saved = await node.storage.save_on(connection, save)
        _check(start, saved, on_conflict)
        if not restarts or saved.outcome is SaveOutcome.CREATED:
            return saved
        with suppress(NotFound):  # it was pruned since: its key is free, and nothing is started yet
            await _restart(node, saved.request_id, start)
            return saved


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """Something for an execution. With ``key``, only the first of that key is taken."""

    workflow: str
    group: str
    id: str
    tag: str
    payload: bytes
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.workflow}/{self.id}"

    async def request(
        self, node: "Node", request_id: Snowflake | None = None, *, wait: bool = False
    ) -> SaveRequest:
        """What is to be stored."""
        envelope = await self.envelope(node, request_id)
        target = dedup_key(RUN, self.workflow, self.id)
        return SaveRequest(envelope=envelope, target=target, wait=wait)

    async def envelope(
        self, node: "Node", request_id: Snowflake | None, *, persisted: bool = True
    ) -> EnvelopeRequest:
        await node.know(self.group)
        return EnvelopeRequest(
            request_id=request_id or await node.outbox.next_id(),
            address=address_of(node, workflow=self.workflow, group=self.group, id=self.id),
            tag=self.tag,
            payload=self.payload,
            key=self.key,
            trace=current_trace(),
            persisted=persisted,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """A start that is stored together with a first message: both or neither.

    An execution that is there is told without being started, if it was started with the same
    request: ``PayloadConflict`` else, ``AlreadyStarted`` with ``on_conflict="fail"``, and
    ``NotFound`` when it has ended.
    """

    start: Start
    on_conflict: Literal["join", "fail"] = "join"
    connection: object = None

    async def signal(self, node: "Node", message: Message) -> Snowflake:
        """Store them; the id of the run request."""
        return _opened(await self._save(node, message, await message.request(node)))

    async def ask(self, node: "Node", message: Message) -> Exit:
        """Store them, and wait for the answer."""
        request_id = await node.outbox.next_id()
        with node.replies.expect(request_id) as answer:
            request = await message.request(node, request_id, wait=True)
            saved = await self._save(node, message, request)
            if saved.request_id == request_id:
                return await answer
        return await node.replies.wait(saved.request_id)

    async def _save(self, node: "Node", message: Message, request: SaveRequest) -> Saved:
        opening = await self.start.request(node)
        joins = self.on_conflict == "join"
        asked = replace(request, opening=opening, joins=joins)
        saved = await self._store(node, asked)
        if saved.opened is not None:
            _check(self.start, saved.opened, self.on_conflict)
        if saved.outcome is SaveOutcome.NOT_OPENED and saved.opened is not None:
            # It was started with the same request in other bytes, which are there to stay.
            found = _opened(saved)
            saved = replace(
                await self._store(node, request),
                opened=Saved(outcome=SaveOutcome.EXISTS, request_id=found),
            )
        _check_target(message, saved, ended=True)
        _check_payload(message, saved)
        return saved

    async def _store(self, node: "Node", request: SaveRequest) -> Saved:
        if self.connection is None:
            return await node.outbox.save(request)
        return await node.storage.save_on(self.connection, request)


def _opened(saved: Saved) -> Snowflake:
    assert saved.opened is not None
    return saved.opened.request_id


async def complete(node: "Node", token: StepToken, payload: bytes, *, failed: bool) -> bool:
    """End a postponed attempt by a result, or an error (``encode_error``), as ``tell`` does.

    A token comes from outside: which shard group the execution is in is read, since asking for one
    that is not there would make it.
    """
    found = await admin.find(node.storage, token.workflow, token.id)
    message = Message(
        workflow=token.workflow,
        group=found.shard.group,
        id=token.id,
        tag=token.tag(failed=failed),
        payload=payload,
        key=token.key,
    )
    return await tell(node, message)


async def tell(node: "Node", message: Message) -> bool:
    """Store a message to an execution; False when it came too late, or is not the first.

    ``NotFound`` when there is no such execution.
    """
    await node.outbox.room()
    saved = await node.outbox.save(await message.request(node))
    _check_target(message, saved)
    return saved.outcome is SaveOutcome.CREATED


async def signal(node: "Node", message: Message) -> None:
    """Store a message that must be handled; a key that is taken was it already. ``NotFound`` when
    the execution is not there or has ended."""
    await node.outbox.room()
    saved = await node.outbox.save(await message.request(node))
    _check_target(message, saved, ended=True)
    _check_payload(message, saved)


async def ask(node: "Node", message: Message) -> Exit:
    """As ``signal``, and wait for the answer; with a key, for that of the first."""
    await node.outbox.room()
    request_id = await node.outbox.next_id()
    with node.replies.expect(request_id) as answer:
        saved = await node.outbox.save(await message.request(node, request_id, wait=True))
        _check_target(message, saved, ended=True)
        _check_payload(message, saved)
        if saved.request_id == request_id:
            return await answer
    return await node.replies.wait(saved.request_id)


async def query(node: "Node", message: Message) -> Exit:
    """Ask the owner of an execution, without a trace. ``NoRunner`` when nobody owns it.

    Since a query changes nothing, it is asked once more when its runner is lost with it in hand;
    not again and again, since it may be what its runner is lost by.
    """
    exit = await _query(node, message)
    lost = isinstance(exit, Defect) and exit.error.type == RUNNER_LOST
    return await _query(node, message) if lost else exit


async def _query(node: "Node", message: Message) -> Exit:
    request_id = await node.outbox.next_id()
    envelope = await message.envelope(node, request_id, persisted=False)
    with node.replies.expect(request_id) as answer:
        await node.sender.send(envelope, wait=True)
        return await answer


async def pause(node: "Node", workflow: str, *, paused: bool, reason: str) -> bool:
    """Let all executions of a workflow stand still, or go on; False when they do already, as
    whoever said so first said."""
    by = node.settings.author
    changed = await node.storage.write_pause(workflow, paused=paused, reason=reason, by=by)
    # Also when nothing changed: a first try may have been lost after it was written.
    node.storage.doorbell.ring_topology()
    return changed


def _check_target(message: Message, saved: Saved, *, ended: bool = False) -> None:
    if saved.outcome is SaveOutcome.NO_TARGET:
        raise NotFound(f"there is no execution {message}; 'outlast ls' lists those there are")
    if ended and saved.outcome is SaveOutcome.TARGET_FINISHED:
        raise NotFound(f"{message} has ended; it takes no messages any more")


def _check_payload(message: Message, saved: Saved) -> None:
    if saved.payload is not None and not same_json(saved.payload, message.payload):
        raise PayloadConflict(
            f"the key of this message to {message} was used before with other arguments;"
            " use another key, or send the same"
        )


def address_of(node: "Node", *, workflow: str, group: str, id: str) -> EntityAddress:
    """Where an execution lives."""
    shard = shard_of(group, node.storage.shards_in(group), workflow, id)
    return EntityAddress(shard, EntityType(workflow), EntityId(id))


@dataclass(frozen=True, slots=True, kw_only=True)
class Located:
    """Where a workflow's executions live, and whether a runner serves it now."""

    group: str
    served: bool


async def locate(storage: Storage, workflow: str) -> Located:
    """Find a workflow by its name among what live runners serve and what has executions.

    ``NotRegistered`` when it is neither.
    """
    types = served(await storage.runners())
    found = types.get(workflow)
    if found is not None and found.kind == "workflow":
        return Located(group=found.group, served=bool(found.by))
    stored = await storage.workflows()
    if workflow in stored:
        return Located(group=stored[workflow], served=False)
    if found is not None:
        raise NotRegistered(f"{workflow} is of kind {found.kind}; only workflows can be started")
    names = ", ".join(sorted(name for name, each in types.items() if each.kind == "workflow"))
    raise NotRegistered(
        f"no live runner serves a workflow {workflow!r}"
        + (f"; served now: {names}" if names else ", and none serves any other")
        + ("" if names else "; start one with 'outlast run APP'")
    )


async def _restart(node: "Node", request_id: Snowflake, start: Start) -> None:
    """Have an execution that has ended, but not well, begin again, on the version that a new one
    would get. Whoever does it first does it for all who ask."""
    loaded = await load(node, request_id)
    if not loaded.execution.status.finished or loaded.execution.status is Status.SUCCEEDED:
        return
    order = order_of(node)
    envelope = replace(loaded.envelope, headers=start.headers(order.at), trace=current_trace())
    await reopen(node, envelope, loaded, restarted(loaded, order=order), version=UNDECIDED)


async def load(node: "Node", request_id: Snowflake) -> LoadedExecution:
    """An execution that is known to have been there: ``NotFound`` when it was pruned since."""
    for loaded in await node.storage.load([request_id]):
        return loaded
    raise NotFound(f"execution {request_id} is not stored any more: it has ended and was pruned")


def order_of(node: "Node") -> Order:
    """What this process wants of an execution now."""
    return Order(by=node.settings.author, at=node.clock.now())


async def reopen(
    node: "Node",
    envelope: EnvelopeRequest,
    loaded: LoadedExecution,
    journal: Sequence[JournalRow],
    *,
    version: int | None = None,
) -> None:
    """Let an execution that has ended, but not well, go on as its next run; no-op when somebody
    else has done so since it was loaded, ``NotFound`` when somebody has pruned it."""
    run = loaded.execution.run
    shard = await node.storage.reopen(envelope, run=run, journal=journal, version=version)
    if shard is None:
        await load(node, loaded.execution.request_id)
    else:
        node.ring_shards([shard])


def _check(start: Start, saved: Saved, on_conflict: str) -> None:
    if saved.outcome is SaveOutcome.CREATED:
        return
    name = f"{start.workflow}/{start.id}"
    if saved.payload is not None and not same_json(saved.payload, start.payload):
        raise PayloadConflict(
            f"{name} was started before with another request;"
            " use another key, or start it with the same request"
        )
    if on_conflict == "fail":
        raise AlreadyStarted(f"{name} was started before")
