"""``Client``: start, poll and join executions and call entities, from any process.

Requests leave through the process's ``outbox``; replies come back to its ``replies``.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Literal, ParamSpec, Self, TypeVar

from engine import admin, by_name
from engine.cluster.entity import Entity
from engine.cluster.handle import EntityCall, call_on_handle, entity_handle
from engine.core.codec import same_json
from engine.core.errors import (
    ConfigurationError,
    ErrorDetails,
    InvalidPayload,
    PayloadConflict,
    RequestFailed,
)
from engine.core.ids import Snowflake
from engine.core.names import entity_id
from engine.core.reply import Defect, Exit, Failure, Success
from engine.core.status import Status
from engine.execution import Execution
from engine.node import Node
from engine.outcome import ExecutionInfo
from engine.settings import Settings
from engine.storage.protocol import (
    ExecutionFilter,
    Saved,
    SaveOutcome,
    SaveRequest,
)
from engine.workflow.definition import Workflow, WorkflowDefinition, definition_of

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
        self._place = node or Node(settings or Settings())
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
        attributes: Mapping[str, object] | None = None,
        on_conflict: Literal["join", "fail"] = "join",
        connection: object = None,
    ) -> Execution[Out]:
        """Start an execution and return once that is durable.

        Its id is ``key``, or ``workflow.key(request)``. Starting again with the same id and request
        gives the same execution (with ``on_conflict="fail"``, ``AlreadyStarted``); with another
        request, ``PayloadConflict``. ``at`` or ``delay`` put the start off. ``connection``: your
        own asyncpg connection or SQLAlchemy ``AsyncSession``; the execution starts if and only if
        your transaction commits.
        """
        definition = definition_of(workflow)
        start = _start(
            definition, request, key, deliver_at=self._when(at, delay), attributes=attributes
        )
        saved = await by_name.start(
            self._node, start, on_conflict=on_conflict, connection=connection
        )
        return Execution(self._node, definition, start.id, saved.request_id)

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
        async with asyncio.timeout(None if timeout is None else timeout.total_seconds()):
            request_id = await self._node.outbox.next_id()
            with self._node.replies.expect(request_id) as answer:
                saved = await by_name.start(self._node, start, expected=request_id)
                execution: Execution[Out] = Execution(
                    self._node, definition, start.id, saved.request_id
                )
                if saved.outcome is SaveOutcome.CREATED:
                    return execution.result_of(await answer)
            return await execution.join()

    def execution(self, workflow: type[Workflow[In, Out]], id: str) -> Execution[Out]:
        """A handle on an execution by its id; asks nothing of the database."""
        return Execution(self._node, definition_of(workflow), entity_id(id, what="the id"))

    async def executions(
        self,
        workflow: type[Workflow[Any, Any]] | str | None = None,
        *,
        status: Status | Sequence[Status] = (),
        attributes: Mapping[str, object] | None = None,
        started_after: datetime | None = None,
        parent: Snowflake | None = None,
        limit: int | None = None,
        after: Snowflake | None = None,
    ) -> AsyncIterator[ExecutionInfo]:
        """Executions that match, youngest first, read page by page as you iterate."""
        name = (
            workflow
            if workflow is None or isinstance(workflow, str)
            else definition_of(workflow).name
        )
        wanted = ExecutionFilter(
            workflow=name,
            statuses=(status,) if isinstance(status, Status) else tuple(status),
            attributes=dict(attributes or {}),
            started_after=started_after,
            parent=parent,
            after=after,
        )
        async for info in admin.executions(self._node.storage, wanted, limit=limit):
            yield info

    # --- entities ---------------------------------------------------------------------------------

    def entity(
        self, entity: type[E], id: str, *, at: datetime | None = None, key: str | None = None
    ) -> E:
        """A handle typed as the entity: awaiting one of its ``@rpc`` methods sends a message and
        gives the reply (``RequestFailed`` when the handler raised). ``at``: not before that time.
        ``key``: calls with one key run once and share the reply."""
        return entity_handle(entity, id, self._call, deliver_at=at, key=key)

    async def tell(
        self, method: Callable[P, Awaitable[object]], /, *args: P.args, **kwargs: P.kwargs
    ) -> None:
        """Send a message to an entity and return once it is stored, without waiting for it."""
        call = call_on_handle(method, args, dict(kwargs))
        await self._save(call, await self._node.outbox.next_id(), wait=False)

    async def _call(self, call: EntityCall) -> Any:
        request_id = await self._node.outbox.next_id()
        with self._node.replies.expect(request_id) as answer:
            saved = await self._save(call, request_id, wait=True)
            if saved.outcome is SaveOutcome.CREATED:
                return _answer(call, await answer)
        return _answer(call, await self._node.replies.wait(saved.request_id))

    async def _save(self, call: EntityCall, request_id: Snowflake, *, wait: bool) -> Saved:
        payload = call.rpc.signature.validated(call.args, call.kwargs)
        await self._node.know(call.entity.shard_group)
        envelope = call.envelope(
            request_id, shards_in=self._node.storage.shards_in, payload=payload
        )
        saved = await self._node.outbox.save(SaveRequest(envelope=envelope, wait=wait))
        if saved.payload is not None and not same_json(saved.payload, payload):
            raise PayloadConflict(
                f"the key of this call of {call.name} was used before with other arguments;"
                " use another key, or call with the same arguments"
            )
        return saved

    def _when(self, at: datetime | None, delay: timedelta | None) -> datetime | None:
        if at is not None and delay is not None:
            raise ConfigurationError("give at= or delay=, not both")
        if at is not None and at.tzinfo is None:
            raise ConfigurationError("at= needs an aware datetime; give it a time zone")
        return self._node.clock.now() + delay if delay is not None else at


def _answer(call: EntityCall, exit: Exit) -> Any:
    match exit:
        case Success(value):
            return call.rpc.signature.result.decode(value)
        case Failure(error) | Defect(error):
            raise RequestFailed(
                f"{call.entity.name}/{call.id} {call.rpc.name} failed: {error}", error
            )
        case ended:
            raise RequestFailed(
                f"{call.entity.name}/{call.id} {call.rpc.name} was ended: {ended.reason}",
                ErrorDetails(type(ended).__name__, ended.reason),
            )


def _start(
    definition: WorkflowDefinition,
    request: Any,
    key: str | None,
    *,
    deliver_at: datetime | None = None,
    attributes: Mapping[str, object] | None = None,
) -> by_name.Start:
    payload = _encode(definition, request)
    id = entity_id(key if key is not None else definition.cls.key(request), what="the key")
    return by_name.Start(
        workflow=definition.name,
        group=definition.group,
        id=id,
        payload=payload,
        version=definition.version,
        deliver_at=deliver_at,
        attributes=_attributes(attributes),
    )


def _encode(definition: WorkflowDefinition, request: object) -> bytes:
    return definition.request.encode(definition.request.validate(request))


def _attributes(attributes: Mapping[str, object] | None) -> bytes | None:
    if attributes is None:
        return None
    try:
        return json.dumps(dict(attributes)).encode()
    except (TypeError, ValueError) as error:
        raise InvalidPayload(f"attributes must be plain JSON: {error}") from error
