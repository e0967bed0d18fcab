"""``Client``: start, poll and join executions and call entities, from any process.

Requests leave through the process's ``outbox``; replies come back to its ``replies``.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import is_dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Literal, ParamSpec, Self, TypeVar

from engine import admin, bulk, by_name, dead_letters
from engine.bulk import Action, BulkResult
from engine.client_execution import ClientExecution
from engine.cluster.entity import Entity
from engine.cluster.handle import CallOptions, EntityCall, call_on_handle, entity_handle
from engine.cluster.queue import Debounce, Queue, queue_of
from engine.cluster.timetable import Timetable
from engine.consumer import consume, request_failed
from engine.core.clock import due_at, seconds, within
from engine.core.codec import ValueCodec
from engine.core.errors import ConfigurationError, ErrorDetails, InvalidPayload, PayloadConflict
from engine.core.ids import Snowflake
from engine.core.names import entity_id
from engine.core.outcome import DeadLetterInfo, ExecutionInfo
from engine.core.reply import Exit, Success, encode_error
from engine.core.status import Status
from engine.core.trace import checked_headers, checked_trace
from engine.item import Item
from engine.node import Node
from engine.queues import QueueHandle, QueueInfo, queues
from engine.schedule import Schedule, ScheduleInfo, schedules
from engine.settings import Settings, given
from engine.storage.entities import DeadFilter
from engine.storage.protocol import ExecutionFilter, Saved, SaveOutcome
from engine.versions import PatchInfo, VersionInfo, patches, versions
from engine.with_start import WithStart
from engine.workflow.definition import Workflow, WorkflowDefinition, definition_of
from engine.workflow.execution import Execution
from engine.workflow.token import StepToken

In = TypeVar("In")
Out = TypeVar("Out")
E = TypeVar("E", bound=Entity)
P = ParamSpec("P")


class Client:
    """Enter it to connect: ``async with Client() as client``. One per process is enough.

    Concurrent calls share statements. Raises ``StorageUnavailable`` when the database cannot be
    reached, ``SchemaMismatch`` when it has not been migrated.
    """

    def __init__(self, settings: Settings | None = None, *, node: Node | None = None) -> None:
        self._place = node or Node(given(settings))
        self._borrowed = node is not None

    async def __aenter__(self) -> Self:
        if not self._borrowed:
            await self._place.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if not self._borrowed:
            await self._place.__aexit__(*exc)

    @property
    def _node(self) -> Node:
        """Nobody would send what is given to a client that is not connected."""
        if not self._place.entered:
            raise ConfigurationError(
                "this client is not connected: enter it with 'async with Client() as client'"
                if not self._borrowed
                else "this runner's client is connected while the runner is entered:"
                " 'async with runner', or in runner.run()"
            )
        return self._place

    # --- workflows --------------------------------------------------------------------------------

    async def start(
        self,
        workflow: type[Workflow[In, Out]],
        request: In,
        *,
        key: str | None = None,
        at: datetime | None = None,
        delay: timedelta | None = None,
        timeout: timedelta | None = None,
        attributes: Mapping[str, object] | None = None,
        on_conflict: by_name.OnConflict = "join",
        connection: object = None,
    ) -> Execution[Out]:
        """Start an execution and return once that is durable.

        Its id is ``key``, or ``workflow.key(request)``. Starting again with the same id and request
        gives the same execution (with ``on_conflict="fail"``, ``AlreadyStarted``; with
        ``"restart-failed"`` one that has failed or was ended begins again, at once); with another
        request, ``PayloadConflict``. ``at`` or ``delay`` put the start off. After ``timeout``, from
        when it is to begin, it is interrupted and then fails as timed out. ``connection``: your
        own asyncpg connection or SQLAlchemy ``AsyncSession``; the execution starts if and only if
        your transaction commits, and until then whoever joins it finds nothing.
        """
        definition = definition_of(workflow)
        start = _start(
            definition,
            request,
            key,
            deliver_at=self._when(at, delay),
            attributes=attributes,
            timeout=timeout,
        )
        saved = await by_name.start(
            self._node, start, on_conflict=on_conflict, connection=connection
        )
        return ClientExecution(self._node, definition, start.id, saved.request_id)

    def with_start(
        self,
        workflow: type[Workflow[In, Out]],
        request: In,
        *,
        key: str | None = None,
        at: datetime | None = None,
        delay: timedelta | None = None,
        timeout: timedelta | None = None,
        attributes: Mapping[str, object] | None = None,
        on_conflict: Literal["join", "fail"] = "join",
        connection: object = None,
        message_key: str | None = None,
    ) -> WithStart[Out]:
        """Tell an execution something, and start it first if it is not there, in one transaction:
        ``await client.with_start(Chat, room, key="lobby").signal(Chat.say, "hi")``, or ``update``.

        Options as for ``start``; ``key`` is the execution's, and of messages sent with one
        ``message_key`` each handler gets the first only. An execution that has ended is neither
        told nor started: ``NotFound``.
        """
        definition = definition_of(workflow)
        start = _start(
            definition,
            request,
            key,
            deliver_at=self._when(at, delay),
            attributes=attributes,
            timeout=timeout,
        )
        opening = by_name.Opening(start=start, on_conflict=on_conflict, connection=connection)
        return WithStart(self._node, definition, opening, message_key)

    async def execute(
        self,
        workflow: type[Workflow[In, Out]],
        request: In,
        *,
        key: str | None = None,
        timeout: timedelta | None = None,
    ) -> Out:
        """Start (or find) an execution and join it; ``TimeoutError`` after ``timeout``."""
        definition = definition_of(workflow)
        start = _start(definition, request, key)
        async with within(timeout):
            await self._node.outbox.room()
            request_id = await self._node.outbox.next_id()
            with self._node.replies.expect(request_id) as answer:
                saved = await by_name.start(self._node, start, expected=request_id)
                execution: Execution[Out] = ClientExecution(
                    self._node, definition, start.id, saved.request_id
                )
                if saved.outcome is SaveOutcome.CREATED:
                    return execution.result_of(await answer)
            return await execution.join()

    def execution(
        self, workflow: type[Workflow[In, Out]], id: str, *, key: str | None = None
    ) -> Execution[Out]:
        """A handle on an execution by its id; asks nothing of the database. ``key``: of signals and
        updates sent with one key, each handler gets the first only, and all share its answer."""
        id = entity_id(id, what="the id")
        return ClientExecution(self._node, definition_of(workflow), id, key=key)

    async def pause(self, workflow: type[Workflow[Any, Any]] | str, reason: str = "") -> None:
        """Let all executions of a workflow, also those to come, stand still until ``resume``.

        Durable once this returns; runners hear of it at once, or with their next heartbeat. What
        runs of their steps ends, and nothing is started. Starts and messages are stored as ever
        and wait. An execution that is paused by itself stays so when its workflow is resumed.
        """
        await by_name.pause(self._node, _name_of(workflow), paused=True, reason=reason)

    async def resume(self, workflow: type[Workflow[Any, Any]] | str, reason: str = "") -> None:
        """Let the executions of a workflow go on after ``pause``."""
        await by_name.pause(self._node, _name_of(workflow), paused=False, reason=reason)

    async def complete(self, token: str, value: object) -> bool:
        """Give the result of a step that has called ``complete_later``; it is durable once this
        returns. ``token`` is what the step read as ``self.token``.

        The first of ``complete`` and ``fail`` wins; False when this is not it, or the execution has
        ended. A value that is not of the step's type fails the attempt with ``InvalidPayload``; one
        that comes when the attempt has ended otherwise is dropped. ``NotFound`` when there is no
        such execution.
        """
        payload = ValueCodec[Any](Any, what="the value of complete()").encode(value)
        return await by_name.complete(self._node, StepToken.parse(token), payload, failed=False)

    async def fail(self, token: str, error: str | Exception) -> bool:
        """As ``complete``, but the attempt fails; whether another follows is up to the step's
        ``RetryPolicy``, to which an error is what the workflow ``raises``, ``GiveUp``, or else a
        ``StepFailed``. An exception keeps its type, message, traceback, cause and details."""
        failure = encode_error(_failure(error))
        return await by_name.complete(self._node, StepToken.parse(token), failure, failed=True)

    async def executions(
        self,
        workflow: type[Workflow[Any, Any]] | str | None = None,
        *,
        status: Status | Sequence[Status] = (),
        attributes: Mapping[str, object] | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        parent: Snowflake | None = None,
        error: str | None = None,
        version: int | None = None,
        limit: int | None = None,
        after: Snowflake | None = None,
    ) -> AsyncIterator[ExecutionInfo]:
        """Executions that match all of it, youngest first, read page by page as you iterate.

        ``attributes`` are contained in theirs, as JSON. The times are when they were asked for, the
        bounds not included. ``parent`` is the request id of whoever started them. ``error`` is the
        type of what they failed with, such as ``"ConnectionError"``, ``version`` that of the code
        they are pinned to. ``after``: only older ones than that.
        """
        wanted = _filter(
            workflow,
            status,
            attributes=attributes,
            started_after=started_after,
            started_before=started_before,
            parent=parent,
            error=error,
            version=version,
        )
        wanted = replace(wanted, after=after)
        silent_before = self._node.clock.now() - self._node.settings.time_to_live
        storage = self._node.storage
        async for info in admin.executions(
            storage, wanted, limit=limit, silent_before=silent_before
        ):
            yield info

    async def versions(
        self, workflow: type[Workflow[Any, Any]] | str | None = None
    ) -> Sequence[VersionInfo]:
        """The versions of workflows that runners serve or executions need, with how many of those
        have not ended, and how many wait for code that their owner has not. Reads them all."""
        return await versions(self._node.storage, None if workflow is None else _name_of(workflow))

    async def patches(
        self, workflow: type[Workflow[Any, Any]] | str | None = None
    ) -> Sequence[PatchInfo]:
        """What ``patched()`` has answered executions that have not ended, by change: whether the
        old way can go from the code. Reads them all."""
        return await patches(self._node.storage, None if workflow is None else _name_of(workflow))

    async def bulk(
        self,
        action: Action,
        workflow: type[Workflow[Any, Any]] | str | None = None,
        *,
        status: Status | Sequence[Status] = (),
        attributes: Mapping[str, object] | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        parent: Snowflake | None = None,
        error: str | None = None,
        version: int | None = None,
        reason: str = "",
        rate: float | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> AsyncIterator[BulkResult]:
        """Interrupt, terminate, retry, pause or resume all executions that match, as you iterate:
        youngest first, at most ``rate`` a second. Each result is durable when you get it.

        The filter is that of ``executions``. Without ``status`` it is all that the action has an
        effect on; ``"retry"`` takes those that failed or are blocked, and what was interrupted or
        terminated only if that is said. A ``dry_run`` finds them and does nothing.

        Stop it when you like, and repeat it: what was told before is not told again, an interrupt
        unless its ``reason`` is another. What cannot be done to one of them is its ``problem``.
        """
        wanted = _filter(
            workflow,
            status,
            attributes=attributes,
            started_after=started_after,
            started_before=started_before,
            parent=parent,
            error=error,
            version=version,
        )
        results = bulk.act(
            self._node, action, wanted, reason=reason, rate=rate, limit=limit, dry_run=dry_run
        )
        async for result in results:
            yield result

    async def prune(
        self,
        workflow: type[Workflow[Any, Any]] | str | None = None,
        *,
        older_than: timedelta,
        status: Status | Sequence[Status] = (),
        attributes: Mapping[str, object] | None = None,
        started_after: datetime | None = None,
        started_before: datetime | None = None,
        parent: Snowflake | None = None,
        error: str | None = None,
        version: int | None = None,
        rate: float | None = None,
        limit: int | None = None,
        dry_run: bool = False,
    ) -> AsyncIterator[BulkResult]:
        """Delete executions that ended longer ago than that, with all they were told and have sent,
        as you iterate; their keys can be started anew. Each is gone for good when you get it.

        Runners do so by themselves, as the settings and ``Workflow.retention`` say. The filter is
        that of ``executions``, the rest as for ``bulk``; ``ConfigurationError`` when ``status``
        holds none that is an end. One that somebody has still to hear of is kept, and its
        ``problem`` says so.
        """
        before = self._node.clock.now() - timedelta(seconds=seconds(older_than, "older_than="))
        wanted = _filter(
            workflow,
            status,
            attributes=attributes,
            started_after=started_after,
            started_before=started_before,
            parent=parent,
            error=error,
            version=version,
        )
        results = bulk.prune(
            self._node.storage, wanted, before=before, rate=rate, limit=limit, dry_run=dry_run
        )
        async for result in results:
            yield result

    # --- entities ---------------------------------------------------------------------------------

    def entity(
        self,
        entity: type[E],
        id: str,
        *,
        at: datetime | None = None,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        trace: str | None = None,
    ) -> E:
        """A handle typed as the entity: awaiting one of its ``@rpc`` methods sends a message and
        gives the reply (``RequestFailed`` when the handler raised). ``at``: not before that time.
        ``key``: calls with one key run once and share the reply. ``headers``: what its handlers
        read as ``self.headers``. ``trace``: a W3C ``traceparent``; without it messages that are
        sent by a handler or step carry its own on.

        A method that is an async generator is a stream: ``async for`` over the call sends the
        message and gives what the handler yields, in order and without gaps. Asking for the next
        element says that the one before was taken; leaving the loop early ends the stream. With a
        ``key``, iterating again goes on behind what was taken.
        """
        options = CallOptions(
            deliver_at=self._when(at, None),
            key=key,
            headers=checked_headers(headers),
            trace=checked_trace(trace),
        )
        return entity_handle(entity, id, self._call, stream=self._stream, options=options)

    async def tell(
        self, method: Callable[P, Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Send a message to an entity and return once it is stored, without waiting for it."""
        call = call_on_handle(method, args, dict(kwargs))
        await self._save(call, await self._node.outbox.next_id(), wait=False)

    async def dead_letters(
        self,
        entity: type[Entity] | str | None = None,
        id: str | None = None,
        *,
        limit: int | None = None,
        after: Snowflake | None = None,
    ) -> AsyncIterator[DeadLetterInfo]:
        """Messages that could not be handled, youngest first, read page by page as you iterate.

        A message becomes a dead letter when it could not be decoded, when nobody registered its
        entity in time, or when its process or entity was lost with it in hand ``max_deliveries``
        times; its caller got ``RequestFailed``. What a handler raises is an answer, not a dead
        letter. ``after``: only older ones than that.
        """
        name = entity if entity is None or isinstance(entity, str) else entity.name
        wanted = DeadFilter(entity_type=name, entity_id=id, after=after)
        async for letter in dead_letters.dead_letters(self._node.storage, wanted, limit=limit):
            yield letter

    async def retry_dead_letters(self, *request_ids: Snowflake) -> None:
        """Deliver dead letters again, with their failures forgotten; returns once that is stored.

        Their former answer is taken back: who asks for it from now on waits for the new one.
        ``NotFound`` when one of them is none, and then none is delivered.
        """
        for request_id in request_ids:
            await dead_letters.find(self._node.storage, request_id)
        await dead_letters.retry(self._node, request_ids)

    # --- queues -----------------------------------------------------------------------------------

    async def submit(
        self,
        queue: type[Queue[In, Out]],
        item: In,
        *,
        id: str | None = None,
        key: str | None = None,
        priority: int | None = None,
        at: datetime | None = None,
        delay: timedelta | None = None,
        debounce: Debounce | None = None,
    ) -> Item[Out]:
        """Put an item into a queue and return once that is stored; ``join`` it for its result.

        With an ``id`` an item is stored once, and all who submit it share its result; with another
        item under the same id, ``PayloadConflict``. ``key`` and ``priority``: instead of what its
        class says. ``at`` or ``delay``: it does not wait in line before that time. ``debounce``:
        later items may take its place.
        """
        definition = queue_of(queue)
        payload = definition.signature.validated((item,), {})
        deliver_at = self._when(at, delay)
        terms = definition.terms(
            item, id=id, key=key, priority=priority, deliver_at=deliver_at, debounce=debounce
        )
        await self._node.know(definition.group)
        envelope = definition.request(
            await self._node.outbox.next_id(),
            shards_in=self._node.storage.shards_in,
            payload=payload,
            terms=terms,
            id=id,
            deliver_at=deliver_at,
        )
        try:
            saved = await self._node.sender.send(envelope)
        except PayloadConflict as error:
            raise PayloadConflict(
                f"{definition.name} had another item with the id {id!r} before;"
                " use another id, or submit the same"
            ) from error
        return Item(self._node, definition, envelope.address, saved.request_id)

    def queue(self, queue: type[Queue[Any, Any]] | str) -> QueueHandle:
        """A handle on a queue, by its class or its name: to look at it, to pause and resume it, and
        to change its limits; asks nothing of the database."""
        return QueueHandle(self._node, queue)

    async def queues(self) -> Sequence[QueueInfo]:
        """All queues that runners have registered, by name, also those that none serves now."""
        return await queues(self._node.storage)

    # --- crons ------------------------------------------------------------------------------------

    def schedule(self, cron: type[Timetable] | str) -> Schedule:
        """A handle on a cron, by its class or its name: to look at it, to pause, resume and trigger
        it, and to make up for instants; asks nothing of the database."""
        return Schedule(self._node, cron)

    async def schedules(self) -> Sequence[ScheduleInfo]:
        """All crons that runners have registered, by name, also those that none serves now."""
        return await schedules(self._node.storage)

    # --- sending ----------------------------------------------------------------------------------

    async def _call(self, call: EntityCall) -> Any:
        request_id = await self._node.outbox.next_id()
        with self._node.replies.expect(request_id) as answer:
            saved = await self._save(call, request_id, wait=True)
            if saved.outcome is SaveOutcome.CREATED:
                return _answer(call, await answer)
        return _answer(call, await self._node.replies.wait(saved.request_id))

    def _stream(self, call: EntityCall) -> AsyncGenerator[Any, None]:
        return consume(self._node, call, partial(self._save, wait=True))

    async def _save(self, call: EntityCall, request_id: Snowflake, *, wait: bool) -> Saved:
        payload = call.rpc.signature.validated(call.args, call.kwargs)
        await self._node.know(call.entity.shard_group)
        envelope = call.envelope(
            request_id, shards_in=self._node.storage.shards_in, payload=payload
        )
        return await self._node.sender.send(envelope, wait=wait)

    def _when(self, at: datetime | None, delay: timedelta | None) -> datetime | None:
        return due_at(at, delay, self._node.clock.now())


def _name_of(workflow: type[Workflow[Any, Any]] | str) -> str:
    return workflow if isinstance(workflow, str) else definition_of(workflow).name


def _filter(
    workflow: type[Workflow[Any, Any]] | str | None,
    status: Status | Sequence[Status],
    *,
    attributes: Mapping[str, object] | None,
    started_after: datetime | None,
    started_before: datetime | None,
    parent: Snowflake | None,
    error: str | None,
    version: int | None,
) -> ExecutionFilter:
    return ExecutionFilter(
        workflow=None if workflow is None else _name_of(workflow),
        statuses=(status,) if isinstance(status, Status) else tuple(status),
        attributes=dict(attributes or {}),
        started_after=started_after,
        started_before=started_before,
        parent=parent,
        error=error,
        version=version,
    )


def _answer(call: EntityCall, exit: Exit) -> Any:
    match exit:
        case Success(value):
            return call.rpc.signature.result.decode(value)
        case failed:
            raise request_failed(call, failed)


def _failure(error: str | Exception) -> ErrorDetails:
    """An error as it is told, with its fields if a workflow may have declared it."""
    if isinstance(error, str):
        return ErrorDetails("Failed", error)
    details = ErrorDetails.of(error)
    if not is_dataclass(error):
        return details
    fields = ValueCodec[Exception](type(error), what=f"the error {details.type}").encode(error)
    return replace(details, details=json.loads(fields))


def _start(
    definition: WorkflowDefinition,
    request: Any,
    key: str | None,
    *,
    deliver_at: datetime | None = None,
    attributes: Mapping[str, object] | None = None,
    timeout: timedelta | None = None,
) -> by_name.Start:
    valid = definition.request.validate(request)
    payload = definition.request.encode(valid)
    id = entity_id(key if key is not None else definition.cls.key(valid), what="the key")
    return by_name.Start(
        workflow=definition.name,
        group=definition.group,
        id=id,
        payload=payload,
        deliver_at=deliver_at,
        attributes=_attributes(attributes),
        timeout=timeout,
    )


def _attributes(attributes: Mapping[str, object] | None) -> bytes | None:
    if attributes is None:
        return None
    try:
        return json.dumps(dict(attributes)).encode()
    except (TypeError, ValueError) as error:
        raise InvalidPayload(f"attributes must be plain JSON: {error}") from error
