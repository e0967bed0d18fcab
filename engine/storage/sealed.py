"""A storage whose values pass through codecs on their way in and out; the rest passes by.

Between ``client``, ``runner`` or ``cli`` and either storage, which see what a codec has made of the
values, never the values. INVARIANT all-or-none: whatever carries a payload is named here; a test
asks each method of the protocols for it.

What cannot be decoded here stays as it is stored. A message like that is left in its inbox, with
all that follows it to the same recipient, and looked at again from time to time: it is for an owner
that has the key.
"""

import asyncio
import base64
import binascii
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar, cast

from engine.core.envelope import EnvelopeRequest
from engine.core.errors import StorageUnavailable
from engine.core.ids import RunnerId, ShardId, Snowflake
from engine.core.journal import JournalKind, JournalRow
from engine.core.reply import ReplyKind
from engine.core.seal import Codecs, is_sealed, unreadable
from engine.core.status import Status
from engine.storage.entities import DeadFilter, DeadLetter, StateWrite, StoredState
from engine.storage.heartbeats import StepHeartbeat
from engine.storage.protocol import (
    BadBatch,
    Commit,
    ExecutionFilter,
    ExecutionUpdate,
    Fence,
    Flushed,
    InboxKind,
    InboxRow,
    LaneSession,
    LoadedExecution,
    NewReply,
    Post,
    Posted,
    Received,
    Saved,
    SaveOutcome,
    SaveRequest,
    Storage,
    StoredExecution,
    StoredReply,
    Sweep,
    recipient_key,
)
from engine.storage.queues import Dispatched, QueueWrite
from engine.storage.standings import MISFIT
from engine.storage.transaction import Transaction

log: logging.Logger = logging.getLogger(__name__)
S = TypeVar("S", bound=Storage)
V = TypeVar("V")
Send = Callable[[Sequence[SaveRequest]], Awaitable[Sequence[Saved]]]

_RACES = 5
_AGAIN = 5.0
_DIGEST = 8
_WORDS = "encoded "


def sealed(storage: S, codecs: Codecs) -> S:
    """The same storage, with its values behind codecs."""
    return cast("S", SealedStorage(storage, codecs))


class SealedStorage:
    """A ``Storage``, or more than that if it is given more: what has no values passes by."""

    def __init__(self, storage: Storage, codecs: Codecs) -> None:
        self._inner = storage
        self._codecs = codecs
        self._values = Values(storage, codecs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    # --- in -----------------------------------------------------------------------------------

    async def save(
        self, requests: Sequence[SaveRequest], *, apart: bool = False
    ) -> Sequence[Saved]:
        if not self._codecs:
            return await self._inner.save(requests, apart=apart)

        async def send(some: Sequence[SaveRequest]) -> Sequence[Saved]:
            return await self._inner.save(some, apart=apart)

        return await self._save(requests, send)

    async def save_on(self, connection: object, request: SaveRequest) -> Saved:
        async def send(some: Sequence[SaveRequest]) -> Sequence[Saved]:
            return [await self._inner.save_on(connection, each) for each in some]

        return (await self._save([request], send))[0]

    async def _save(self, requests: Sequence[SaveRequest], send: Send) -> Sequence[Saved]:
        encoded = [await self._values.seal_request(each) for each in requests]
        answers = [*await send(encoded)]
        for nth, request in enumerate(requests):
            for _ in range(_RACES):
                if not await self._values.opens(request, answers[nth]):
                    break
                opened = answers[nth].opened
                assert opened is not None
                encoded[nth] = replace(encoded[nth], alike=opened.payload)
                answers[nth] = (await send([encoded[nth]]))[0]
        return [
            await self._values.open_saved(*each) for each in zip(requests, answers, strict=True)
        ]

    async def post(self, messages: Sequence[Post]) -> Sequence[Posted]:
        if not self._codecs:
            return await self._inner.post(messages)
        encoded = [
            replace(each, body=await self._codecs.seal(each.body, *_of_post(each)))
            for each in messages
        ]
        return await self._inner.post(encoded)

    async def transact(
        self, fence: Fence, work: Callable[[Transaction], Awaitable[JournalRow]]
    ) -> None:
        async def encoded(transaction: Transaction) -> JournalRow:
            return await self._values.seal_row(await work(transaction))

        await self._inner.transact(fence, encoded)

    async def reopen(
        self,
        request: EnvelopeRequest,
        *,
        run: int,
        journal: Sequence[JournalRow],
        version: int | None = None,
    ) -> ShardId | None:
        rows = [await self._values.seal_row(row) for row in journal]
        return await self._inner.reopen(request, run=run, journal=rows, version=version)

    async def fork(
        self, request: SaveRequest, *, started_at: datetime, journal: Sequence[JournalRow]
    ) -> bool:
        rows = [await self._values.seal_row(row) for row in journal]
        encoded = await self._values.seal_request(request)
        return await self._inner.fork(encoded, started_at=started_at, journal=rows)

    # --- out ----------------------------------------------------------------------------------

    async def take_post(self) -> Sequence[Received]:
        received = await self._inner.take_post()
        if not self._codecs:
            return received
        return [
            replace(each, body=await self._codecs.open(each.body, *_of_post(each)))
            for each in received
        ]

    async def replies(
        self, requests: Sequence[Snowflake], *, after: Mapping[Snowflake, int] | None = None
    ) -> Sequence[StoredReply]:
        stored = await self._inner.replies(requests, after=after)
        return await self._each(stored, self._values.open_reply)

    async def request(self, request_id: Snowflake) -> EnvelopeRequest | None:
        stored = await self._inner.request(request_id)
        return None if stored is None else await self._values.open_envelope(stored)

    async def load(self, executions: Sequence[Snowflake]) -> Sequence[LoadedExecution]:
        return await self._each(await self._inner.load(executions), self._loaded)

    async def _loaded(self, stored: LoadedExecution) -> LoadedExecution:
        return LoadedExecution(
            execution=await self._values.open_execution(stored.execution),
            envelope=await self._values.open_envelope(stored.envelope),
            journal=[await self._values.open_row(row) for row in stored.journal],
        )

    async def find(self, workflow: str, execution_id: str) -> StoredExecution | None:
        stored = await self._inner.find(workflow, execution_id)
        return None if stored is None else await self._values.open_execution(stored)

    async def executions(self, filter: ExecutionFilter, *, limit: int) -> Sequence[StoredExecution]:
        stored = await self._inner.executions(filter, limit=limit)
        return await self._each(stored, self._values.open_execution)

    async def history(self, execution: Snowflake) -> Sequence[JournalRow]:
        return await self._each(await self._inner.history(execution), self._values.open_row)

    async def heartbeats(self, executions: Sequence[Snowflake]) -> Sequence[StepHeartbeat]:
        stored = await self._inner.heartbeats(executions)
        return await self._each(stored, self._values.open_heartbeat)

    async def states(
        self, entities: Sequence[tuple[str, str]]
    ) -> Mapping[tuple[str, str], StoredState]:
        stored = await self._inner.states(entities)
        if not self._codecs:
            return stored
        return {key: await self._values.open_state(each) for key, each in stored.items()}

    async def dead_letters(self, filter: DeadFilter, *, limit: int) -> Sequence[DeadLetter]:
        stored = await self._inner.dead_letters(filter, limit=limit)
        return await self._each(stored, self._values.open_letter)

    async def open_lane(self, runner: RunnerId, index: int) -> LaneSession:
        lane = await self._inner.open_lane(runner, index)
        return cast("LaneSession", SealedLane(lane, self._codecs, self._values))

    async def _each(self, stored: Sequence[V], open: Callable[[V], Awaitable[V]]) -> Sequence[V]:
        return [await open(each) for each in stored] if self._codecs else stored


class SealedLane:
    """A ``LaneSession`` of a sealed storage."""

    def __init__(self, lane: LaneSession, codecs: Codecs, values: "Values") -> None:
        self._inner = lane
        self._codecs = codecs
        self._values = values
        self._put_by: dict[int, tuple[float, int | None, ShardId]] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    @property
    def closed(self) -> bool:
        return self._inner.closed

    async def acquire(self, shards: Sequence[ShardId]) -> Mapping[ShardId, int]:
        self._put_by.clear()
        return await self._inner.acquire(shards)

    async def flush(self, commits: Sequence[Commit]) -> Flushed:
        if not self._codecs:
            return await self._inner.flush(commits)
        try:
            encoded = [await self._values.seal_commit(commit) for commit in commits]
        except StorageUnavailable as error:  # the session is fine
            raise BadBatch(str(error), transient=True) from error
        flushed = await self._inner.flush(encoded)
        if not any(saved.payload for saved in flushed.requests.values()):
            return flushed
        asked = {each.envelope.request_id: each for commit in commits for each in commit.requests}
        answers = {
            id: await self._values.open_saved(asked[id], saved)
            for id, saved in flushed.requests.items()
        }
        return replace(flushed, requests=answers)

    async def dispatch(self, write: QueueWrite) -> Dispatched:
        if not (self._codecs and write.ended):
            return await self._inner.dispatch(write)
        try:
            ended = [
                (id, kind, await self._values.seal_reply(id, kind, 0, payload))
                for id, kind, payload in write.ended
            ]
        except StorageUnavailable as error:
            raise BadBatch(str(error), transient=True) from error
        return await self._inner.dispatch(replace(write, ended=ended))

    async def sweep(
        self,
        shards: Sequence[ShardId],
        *,
        in_flight: Sequence[int],
        resident: Sequence[Snowflake],
        held: Sequence[Collection[int]] = (),
        admitted: Sequence[int] | None = None,
        floors: Sequence[int] = (),
        limit: int,
        horizon: timedelta,
    ) -> Sweep:
        now = asyncio.get_running_loop().time()
        if self._put_by:
            self._put_by = {seq: each for seq, each in self._put_by.items() if each[0] > now}
            own: dict[ShardId, set[int]] = defaultdict(set)
            for _, recipient, shard in self._put_by.values():
                if recipient is not None:
                    own[shard].add(recipient)
            each = zip(shards, held or [()] * len(shards), strict=True)
            held = [own[shard].union(keys) for shard, keys in each]
            in_flight = [*in_flight, *self._put_by]
        sweep = await self._inner.sweep(
            shards,
            in_flight=in_flight,
            resident=resident,
            held=held,
            admitted=admitted,
            floors=floors,
            limit=limit,
            horizon=horizon,
        )
        rows = sweep.rows
        if self._codecs or any(_seals(row) for row in rows):
            rows = await self._readable(rows, now + _AGAIN)
        elif not self._put_by:
            return sweep
        kept = {shard for _, _, shard in self._put_by.values()}
        return replace(sweep, rows=rows, kept=kept.intersection(shards))

    async def _readable(self, stored: Sequence[InboxRow], again: float) -> Sequence[InboxRow]:
        """Those that can be delivered here. The rest waits, and what follows it with it."""
        rows: list[InboxRow] = []
        waiting = dict[int, InboxRow]()
        for each in stored:
            row = await self._values.open_inbox(each)
            recipient = _recipient(row)
            if _needs_key(row) or (recipient is not None and recipient in waiting):
                self._put_by[row.seq] = again, recipient, row.shard
                waiting[row.seq if recipient is None else recipient] = row
            else:
                rows.append(row)
        for row in waiting.values():
            payload = row.envelope.payload if row.reply is None else row.reply.payload
            log.warning(
                "a message waits for a runner that can decode it",
                extra={"request_id": row.envelope.request_id, "why": unreadable(payload)},
            )
        return rows


def _recipient(row: InboxRow) -> int | None:
    """Whose later messages are not to overtake it."""
    return recipient_key(row.recipient) if row.kind is InboxKind.REQUEST else None


def _seals(row: InboxRow) -> bool:
    values = (row.envelope, row.reply)
    return any(value is not None and is_sealed(value.payload) for value in values)


def _needs_key(row: InboxRow) -> bool:
    """Whether it cannot be handled as it is. What starts an execution can: it is then blocked."""
    match row.kind:
        case InboxKind.REQUEST:
            starts = row.execution == row.envelope.request_id
            return not starts and is_sealed(row.envelope.payload)
        case InboxKind.ADMITTED:
            return is_sealed(row.envelope.payload)
        case InboxKind.REPLY:
            return row.reply is not None and is_sealed(row.reply.payload)
        case InboxKind.INTERRUPT | InboxKind.FREED:
            return False


class Values:
    """Each thing that is stored with a value, encoded and decoded, and the place it is bound to."""

    def __init__(self, storage: Storage, codecs: Codecs) -> None:
        self._storage = storage
        self._codecs = codecs

    # --- requests -----------------------------------------------------------------------------

    async def seal_request(self, request: SaveRequest) -> SaveRequest:
        envelope, opening = request.envelope, request.opening
        payload = await self._codecs.seal(envelope.payload, *_of_envelope(envelope))
        return replace(
            request,
            envelope=replace(envelope, payload=payload),
            opening=None if opening is None else await self.seal_request(opening),
        )

    async def open_envelope(self, stored: EnvelopeRequest) -> EnvelopeRequest:
        if not is_sealed(stored.payload):
            return stored
        payload = await self._codecs.open(stored.payload, *_of_envelope(stored))
        return replace(stored, payload=payload)

    async def opens(self, request: SaveRequest, answer: Saved) -> bool:
        """Whether it was refused for bytes that only were encoded another time."""
        if answer.outcome is not SaveOutcome.NOT_OPENED or not request.joins:
            return False
        opened = (await self.open_saved(request, answer)).opened
        assert opened is not None
        assert request.opening is not None
        return opened.payload == request.opening.envelope.payload

    async def open_saved(self, request: SaveRequest, answer: Saved) -> Saved:
        payload, opened = answer.payload, answer.opened
        if payload is not None and is_sealed(payload):
            # One key may have been used for another recipient or tag.
            payload = await self._of_taken(request.envelope, answer.request_id, payload)
        if opened is not None and request.opening is not None:
            opened = await self.open_saved(request.opening, opened)
        return replace(answer, payload=payload, opened=opened)

    async def _of_taken(self, asked: EnvelopeRequest, taken: Snowflake, payload: bytes) -> bytes:
        stored = await self._storage.request(taken)
        envelope = replace(asked, request_id=taken) if stored is None else stored
        return (await self.open_envelope(replace(envelope, payload=payload))).payload

    # --- what an owner writes -----------------------------------------------------------------

    async def seal_commit(self, commit: Commit) -> Commit:
        update = commit.execution
        return replace(
            commit,
            journal=[await self.seal_row(row) for row in commit.journal],
            replies=[await self._seal_new(reply) for reply in commit.replies],
            requests=[await self.seal_request(request) for request in commit.requests],
            states=[await self._seal_state(state) for state in commit.states],
            heartbeats=[await self._seal_heartbeat(each) for each in commit.heartbeats],
            execution=None if update is None else await self._seal_update(update),
        )

    async def seal_row(self, row: JournalRow) -> JournalRow:
        """With the value goes the digest of what a step was called with: short arguments could be
        guessed from that."""
        bare = not row.payload and row.digest == 0
        if not self._codecs or bare or row.kind is JournalKind.PATCHED:  # asked for by a query
            return row
        value = row.digest.to_bytes(_DIGEST, "big", signed=True) + row.payload
        payload = await self._codecs.seal(value, *_of_row(row))
        return replace(row, digest=0, payload=payload)

    async def open_row(self, stored: JournalRow) -> JournalRow:
        if not is_sealed(stored.payload):
            return stored
        value = await self._codecs.open(stored.payload, *_of_row(stored))
        if value is stored.payload:
            return stored
        digest = int.from_bytes(value[:_DIGEST], "big", signed=True)
        return replace(stored, digest=digest, payload=value[_DIGEST:])

    async def _seal_new(self, reply: NewReply) -> NewReply:
        payload = await self.seal_reply(reply.request_id, reply.kind, reply.sequence, reply.payload)
        return replace(reply, payload=payload)

    async def seal_reply(
        self, request_id: Snowflake, kind: ReplyKind, sequence: int, payload: bytes
    ) -> bytes:
        return await self._codecs.seal(payload, *_of_reply(request_id, kind, sequence))

    async def open_reply(self, stored: StoredReply) -> StoredReply:
        if not is_sealed(stored.payload):
            return stored
        place = _of_reply(stored.request_id, stored.kind, stored.sequence)
        return replace(stored, payload=await self._codecs.open(stored.payload, *place))

    async def _seal_state(self, state: StateWrite) -> StateWrite:
        return replace(state, payload=await self._codecs.seal(state.payload, *_of_state(state)))

    async def open_state(self, stored: StoredState) -> StoredState:
        payload = await self._codecs.open(stored.payload, *_of_state(stored))
        return replace(stored, payload=payload)

    async def _seal_heartbeat(self, heartbeat: StepHeartbeat) -> StepHeartbeat:
        if not heartbeat.details:
            return heartbeat
        details = await self._codecs.seal(heartbeat.details, *_of_heartbeat(heartbeat))
        return replace(heartbeat, details=details)

    async def open_heartbeat(self, stored: StepHeartbeat) -> StepHeartbeat:
        if not stored.details:
            return stored
        details = await self._codecs.open(stored.details, *_of_heartbeat(stored))
        return replace(stored, details=details)

    # --- why an execution is blocked: an error's words may quote values ------------------------

    async def _seal_update(self, update: ExecutionUpdate) -> ExecutionUpdate:
        if update.status is not Status.BLOCKED or update.waiting is None:
            return update
        words = await self._codecs.seal(update.waiting.encode(), "why", update.request_id)
        mark = MISFIT if update.waiting.startswith(MISFIT) else ""  # they are counted by it
        return replace(update, waiting=f"{mark}{_WORDS}{base64.b64encode(words).decode()}")

    async def open_execution(self, stored: StoredExecution) -> StoredExecution:
        words = (stored.waiting or "").removeprefix(MISFIT)
        if stored.status is not Status.BLOCKED or not words.startswith(_WORDS):
            return stored
        try:
            payload = base64.b64decode(words.removeprefix(_WORDS), validate=True)
        except (binascii.Error, ValueError):
            return stored  # somebody's own words
        told = await self._codecs.open(payload, "why", stored.request_id)
        return replace(stored, waiting=unreadable(told) or told.decode(errors="replace"))

    # --- what is read at once ------------------------------------------------------------------

    async def open_inbox(self, stored: InboxRow) -> InboxRow:
        return replace(
            stored,
            envelope=await self.open_envelope(stored.envelope),
            state=None if stored.state is None else await self.open_execution(stored.state),
            reply=None if stored.reply is None else await self.open_reply(stored.reply),
        )

    async def open_letter(self, stored: DeadLetter) -> DeadLetter:
        place = (stored.request_id, stored.entity_type, stored.entity_id, stored.tag)
        error = _of_reply(stored.request_id, ReplyKind.DEFECT, 0)
        return replace(
            stored,
            payload=await self._codecs.open(stored.payload, "request", *place),
            error=await self._codecs.open(stored.error, *error),
        )


def _of_envelope(envelope: EnvelopeRequest) -> tuple[object, ...]:
    address = envelope.address
    return (
        "request",
        envelope.request_id,
        address.entity_type,
        address.entity_id,
        envelope.tag,
    )


def _of_row(row: JournalRow) -> tuple[object, ...]:
    return (
        "journal",
        row.execution,
        row.run,
        row.position,
        row.kind.value,
        row.outcome.value,
        row.attempt,
        row.ordinal,
        row.name,
    )


def _of_post(message: Post | Received) -> tuple[object, ...]:
    return "post", message.kind.value, message.request_id


def _of_reply(request_id: Snowflake, kind: ReplyKind, sequence: int) -> tuple[object, ...]:
    """A request has one exit, whatever came before it."""
    return "reply", request_id, kind.value, sequence if kind is ReplyKind.CHUNK else "exit"


def _of_state(state: StateWrite | StoredState) -> tuple[object, ...]:
    return "state", state.entity_type, state.entity_id, state.version


def _of_heartbeat(heartbeat: StepHeartbeat) -> tuple[object, ...]:
    return (
        "heartbeat",
        heartbeat.execution,
        heartbeat.run,
        heartbeat.name,
        heartbeat.ordinal,
        heartbeat.attempt,
    )
