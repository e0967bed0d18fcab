"""What the engine asks of a storage: narrow, encoded, and the same for PostgreSQL and memory.

A process opens one ``Storage``. Any process may save requests, read replies and ring the doorbell.
A runner also opens lanes: each ``LaneSession`` is one session that holds the advisory locks of its
shards, and every durable write of their owner goes through it. ``storage.lane`` batches on top.
"""

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum, IntEnum
from typing import Final, Protocol
from uuid import UUID

from engine.core.envelope import AckChunk, EnvelopeRequest, Interrupt, ReplyTo
from engine.core.ids import EntityAddress, MachineLease, RunnerId, ShardId, Snowflake, entity_key
from engine.core.journal import JournalRow
from engine.core.record import record
from engine.core.reply import Exit, ReplyKind, encode_exit
from engine.core.status import Status
from engine.storage.entities import (
    DeadFilter,
    DeadLetter,
    EntityFilter,
    EntityRow,
    StateWrite,
    StoredState,
)
from engine.storage.heartbeats import StepHeartbeat
from engine.storage.lock_holder import LockHolder
from engine.storage.pauses import Pause
from engine.storage.places import Place
from engine.storage.queues import (
    Dispatched,
    QueueContents,
    QueueCounts,
    QueueRow,
    QueueWrite,
)
from engine.storage.retention import Pruned, RequestTerm, Term
from engine.storage.schedules import Fire, ScheduleRow
from engine.storage.standings import PatchAnswer, Standing
from engine.storage.transaction import Transaction

# --- requests ---------------------------------------------------------------------------------


UNDECIDED: Final = 0
"""The version of an execution of whose present run nothing is stored yet: the runner that takes it
up pins it to the highest it serves, with the first thing that it writes of it."""


@record
class ExecutionStart:
    """What a request that starts an execution stores besides its envelope. ``version`` is that of
    its code; without one it is for the runner to say that takes the execution up."""

    version: int = UNDECIDED
    attributes: bytes | None = None
    parent: Snowflake | None = None


@record
class SaveRequest:
    """A request to store, at most once by its envelope's key (without one: by its request id).

    ``execution`` makes it the start of an execution. ``target`` makes it an event of the live
    execution whose run request has that dedup key. ``wait`` registers this process as a waiter
    for its reply in the same transaction.

    ``opening`` is the start of its target, which is stored with it if there is no such execution:
    both or neither. One that is there is told only if it ``joins``, and was started with the same
    bytes, or with those of ``alike``. For clients; a lane's flush knows nothing of it.
    """

    envelope: EnvelopeRequest
    execution: ExecutionStart | None = None
    target: str | None = None
    wait: bool = False
    opening: "SaveRequest | None" = None
    joins: bool = True
    alike: bytes | None = None

    def begun(self, start: ExecutionStart, at: datetime) -> "StoredExecution":
        """The execution that it starts, as it is stored."""
        address = self.envelope.address
        return StoredExecution(
            request_id=self.envelope.request_id,
            workflow=address.entity_type,
            execution_id=address.entity_id,
            shard=address.shard,
            status=Status.SCHEDULED,
            run=1,
            version=start.version,
            created_at=at,
            parent=start.parent,
            attributes=start.attributes,
        )


class SaveOutcome(Enum):
    CREATED = "created"
    EXISTS = "exists"
    """The key is taken: ``request_id`` and ``payload`` are those of the stored request."""
    NO_TARGET = "no target"
    """There is no execution with the target's key."""
    TARGET_FINISHED = "target finished"
    NOT_OPENED = "not opened"
    """Its target was started before, with other bytes, or must not have been: nothing was stored.
    ``opened`` says by what."""
    BLOCKED = "blocked"
    """Its key is held by somebody's open transaction, or was asked for together with one that is:
    save it again, apart from others."""


@record
class Saved:
    """What became of one ``SaveRequest``; ``seq`` is its inbox row when it was created, ``opened``
    what became of its ``opening``."""

    outcome: SaveOutcome
    request_id: Snowflake
    seq: int | None = None
    payload: bytes | None = None
    opened: "Saved | None" = None


# --- replies ----------------------------------------------------------------------------------


@record
class StoredReply:
    """One row of ``replies``: a chunk, or the exit (which has the highest sequence)."""

    request_id: Snowflake
    sequence: int
    kind: ReplyKind
    payload: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPosition:
    """How far a persisted stream has come. Sequences start at 0.

    ``next_sequence`` is one more than the last chunk that was ever stored, ``acked`` the last one
    acknowledged (-1: none). Acknowledged chunks are no longer stored.
    """

    next_sequence: int = 0
    acked: int = -1


# --- executions -------------------------------------------------------------------------------


@record
class StoredExecution:
    """One row of ``executions``, with the runner that owns its shard now."""

    request_id: Snowflake
    workflow: str
    execution_id: str
    shard: ShardId
    status: Status
    run: int
    version: int
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    wake_at: datetime | None = None
    waiting: str | None = None
    parent: Snowflake | None = None
    attributes: bytes | None = None
    runner: RunnerId | None = None
    error: str | None = None
    """The type of the error that it failed with."""
    failures: int = 0
    """How many times in a row its runner's process was lost while it had work in hand, without one
    journal row in between."""


@record
class LoadedExecution:
    """All an owner needs to replay an execution. The journal is that of its current run."""

    execution: StoredExecution
    envelope: EnvelopeRequest
    journal: Sequence[JournalRow]


class Verdict(IntEnum):
    """What is thought of an execution that had been in hand when its owner was lost."""

    OPEN = 0
    """As before."""
    ON_TRIAL = 1
    """It is about to run, and to be blamed if its owner is lost now."""
    ACQUITTED = 2
    """It has got on: its failures are forgotten."""


@record
class ExecutionUpdate:
    """The new state of an execution. ``started_at`` is kept once it is set; ``wake_at``,
    ``waiting`` and ``error`` are replaced, also by null; ``version`` and ``attributes`` None leave
    those as they are."""

    request_id: Snowflake
    run: int
    status: Status
    started_at: datetime | None = None
    finished_at: datetime | None = None
    wake_at: datetime | None = None
    waiting: str | None = None
    verdict: Verdict = Verdict.OPEN
    version: int | None = None
    error: str | None = None
    """The type of the error that it failed with."""
    attributes: bytes | None = None


# --- the owner's side -------------------------------------------------------------------------


class InboxKind(IntEnum):
    REQUEST = 0
    REPLY = 1
    """The exit of a request that an execution had sent (``ReplyTo``)."""
    INTERRUPT = 2
    """The request of ``envelope`` is to end early."""
    ADMITTED = 3
    """The request of ``envelope`` is the item of a queue, to be processed by this shard's owner.
    When the row is settled, a FREED row goes to the shard that the item is addressed to."""
    FREED = 4
    """What the item of ``envelope`` took of its queue's limits is free again."""


SUSPECT: Final = 3
"""So many failed deliveries are counted against all that a lost owner had in hand. What has as many
is delivered on trial, and blamed for nothing else."""


Recipient = EntityAddress | Snowflake
"""An entity, or an execution."""
STARTS = -2
"""In place of an execution that is held: all that are to begin."""


def recipient_key(recipient: Recipient) -> int:
    """The number by which a shard's inbox rows know an entity or execution."""
    if isinstance(recipient, int):
        return recipient
    return entity_key(recipient.entity_type, recipient.entity_id)


@record
class InboxRow:
    """Something to deliver. ``seq`` orders a shard's rows and names the row.

    ``execution`` is the execution it is for (its own run request, or an event of it), with
    ``state`` its row at the time of reading; both are None for an entity's request. For a REPLY
    ``envelope`` is the request that was answered and ``reply`` its exit. For an INTERRUPT
    ``envelope`` is the request to end, ``reply`` its exit if it has one already, and ``target`` its
    own inbox row if that is still there.

    ``failures`` counts the failed deliveries of a request: the process or the entity that had it in
    hand was lost. ``trial`` says that it was being delivered in small company when that happened.
    """

    seq: int
    kind: InboxKind
    shard: ShardId
    envelope: EnvelopeRequest
    execution: Snowflake | None = None
    state: StoredExecution | None = None
    reply: StoredReply | None = None
    target: int | None = None
    failures: int = 0
    trial: bool = False

    @property
    def recipient(self) -> Recipient:
        """Who has to take it."""
        return self.envelope.address if self.execution is None else self.execution

    @property
    def later(self) -> bool:
        """Whether it was stored to be delivered at a time of its own, and came when that was."""
        return self.kind is InboxKind.REQUEST and self.envelope.deliver_at is not None

    @property
    def told(self) -> str:
        """The tag of what an execution is told; empty for a reply, which has the tag of whatever
        was asked, and for an interrupt."""
        return self.envelope.tag if self.kind is InboxKind.REQUEST else ""


@record
class Sweep:
    """What a lane found: rows to deliver in order of ``seq``, and suspended executions now due.

    ``more``: the limit was reached, sweep again. ``next_due``: when the next row or execution that
    is not due yet will be. ``now`` is the database's clock.
    """

    rows: Sequence[InboxRow]
    due: Sequence[Snowflake]
    next_due: datetime | None
    more: bool
    now: datetime
    last: int | None = None
    """The highest ``seq`` there is in these shards, of later rows or not; told only if rows were
    passed over."""
    running: Sequence[int] = ()
    newest: int = 0
    """Of all transactions that write, those from ``newest`` on had not begun. Of those before that
    of an earlier sweep of the lane, all but ``running`` had ended."""
    kept: Collection[ShardId] = ()
    """Shards with rows that cannot be delivered here now, and are to be read again."""


@record
class NewReply:
    """A reply to store. An exit is stored at most once per request: the first insert decides.

    With ``reply_to``, an exit also puts a REPLY row into that execution's inbox.
    """

    request_id: Snowflake
    sequence: int
    kind: ReplyKind
    payload: bytes
    reply_to: ReplyTo | None = None


def exit_reply(
    request_id: Snowflake, exit: Exit, reply_to: ReplyTo | None = None, *, sequence: int = 0
) -> NewReply:
    """An exit as it is stored, behind ``sequence`` chunks."""
    kind, payload = encode_exit(exit)
    return NewReply(
        request_id=request_id, sequence=sequence, kind=kind, payload=payload, reply_to=reply_to
    )


@dataclass(slots=True, kw_only=True)
class Commit:
    """What one owner writes for one shard, all of it or nothing.

    ``settled`` are the inbox rows (``seq``) this deletes. Executions appear at most once a batch,
    an entity's state too (of two writes of one entity the later version is kept). States that come
    with the exit of a request are written only if it becomes that: a request has one exit, and
    changes nothing besides.

    ``failed`` are inbox rows to count a failed delivery of, ``tried`` such as are about to be
    delivered on trial; ``schedules``, ``fires`` and ``heartbeats`` are written as they are. These
    five go out in statements of their own after the others, so that a crash may lose them and keep
    the rest.
    """

    shard: ShardId
    journal: Sequence[JournalRow] = ()
    replies: Sequence[NewReply] = ()
    requests: Sequence[SaveRequest] = ()
    settled: Sequence[int] = ()
    execution: ExecutionUpdate | None = None
    states: Sequence[StateWrite] = ()
    failed: Sequence[int] = ()
    tried: Sequence[int] = ()
    schedules: Sequence[ScheduleRow] = ()
    fires: Sequence[Fire] = ()
    heartbeats: Sequence[StepHeartbeat] = ()

    @property
    def exit(self) -> Snowflake | None:
        """The request that this ends, if any."""
        ends = (each for each in self.replies if each.kind is not ReplyKind.CHUNK)
        return next((each.request_id for each in ends), None)

    @property
    def size(self) -> int:
        """About how many bytes it carries."""
        size = 0
        for row in self.journal:
            size += len(row.payload)
        for reply in self.replies:
            size += len(reply.payload)
        for request in self.requests:
            size += len(request.envelope.payload)
        for state in self.states:
            size += len(state.payload)
        return size


@record
class Flushed:
    """What a flush made. ``requests``: by the request id that was asked for, what became of it.
    ``replies``: the seq of the REPLY inbox row, by the answered request id. ``overtaken``: requests
    that had an exit before the one that came with states. ``followed``: by the execution that has
    ended, the shards in which REPLY rows tell its followers."""

    requests: Mapping[Snowflake, Saved]
    replies: Mapping[Snowflake, int]
    overtaken: Collection[Snowflake] = ()
    followed: Mapping[Snowflake, Sequence[ShardId]] = field(
        default_factory=dict[Snowflake, Sequence[ShardId]]
    )


class LaneSession(Protocol):
    """One session: the locks it holds and the writes it makes live and die together.

    One call at a time; the caller queues. A call that raises ``StorageUnavailable``, or a time-out,
    or is cancelled, leaves the session unusable: its outcome is unknown, the session is ended.
    ``BadBatch`` means that nothing was written and the session is fine.
    """

    @property
    def closed(self) -> bool: ...

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back on the host loop, once, as soon as the session is known to have ended."""
        ...

    async def acquire(self, shards: Sequence[ShardId]) -> Mapping[ShardId, int]:
        """Take what locks are free, bump those shards' epochs, and give the epochs taken.

        Where the former owner was another runner that did not release the shard, what it may have
        had in hand is counted as failed: the rows and executions on trial and, as far as they are
        not suspect already, the oldest due requests and the executions that had rows or were due
        to wake.
        """
        ...

    async def release(self, shards: Sequence[ShardId]) -> None:
        """Clear ``runner_id`` of the shards and unlock them."""
        ...

    async def flush(self, commits: Sequence[Commit]) -> Flushed:
        """Write all commits in one statement."""
        ...

    async def dispatch(self, write: QueueWrite) -> Dispatched:
        """Write what the owner of a queue decided, all of it or nothing."""
        ...

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
        """Read what these shards have to deliver and is not in flight here, oldest first.

        ``held`` are, for each shard, entities (``core.ids.entity_key``) and executions that can
        take no message now: their REQUEST rows are passed over and do not count towards the limit;
        with ``STARTS`` among them, all that executions begin with. So are those of all entities
        that are not ``admitted``, if it is given. ``floors``, one for each shard: rows up to there
        are passed over without a look, unless they were to be delivered later.

        ``BadBatch`` when it met a lock: nothing was read, ask again later. ``due`` lists executions
        whose ``wake_at`` has come or comes within the horizon and that are not resident here;
        ``rows`` only such as are due now.
        """
        ...

    def terminate(self) -> None:
        """End the session at once, whatever it is doing."""
        ...

    async def close(self) -> None:
        """End the session in good order; its locks go with it."""
        ...


class BadBatch(Exception):
    """A flush was refused for what it holds (or for a lock it met): nothing of it was written.

    ``transient``: a lock time-out, deadlock or serialization failure; the same may pass later.
    """

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


# --- runners ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerRow:
    """A runner as others see it. ``types`` maps the names it serves to their kind."""

    id: RunnerId
    groups: Sequence[str]
    weight: float = 1.0
    host: str = ""
    pid: int = 0
    version: str = ""
    types: Mapping[str, str] = field(default_factory=dict[str, str])
    machine: int = 0
    draining: bool = False
    load: "RunnerLoad | None" = None
    started_at: datetime | None = None
    beat_at: datetime | None = None
    """When it last gave a sign of life; None when that is not known (not a sign of death)."""
    died_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunnerLoad:
    """What a runner has in hand, as of its last heartbeat. ``crowded``: it had no place in memory
    for another entity since the one before. ``lag``: how many seconds late its event loop answered,
    at worst, of late."""

    lanes: int = 0
    shards: int = 0
    entities: int = 0
    executions: int = 0
    crowded: bool = False
    lag: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Beat:
    """The answer to a heartbeat, by the database's clock."""

    alive: bool
    """False: this runner has been declared dead and must stop everything at once."""
    now: datetime
    server_started: datetime
    runners: Sequence[RunnerRow]
    """All that are not dead, this one included."""
    post: bool = False
    """Whether volatile messages wait on this runner's channel."""
    pauses: Mapping[str, Pause] = field(default_factory=dict[str, Pause])
    """Workflows that are paused as a whole, or were, by name."""


class Registry(Protocol):
    """The runners' register, on a connection of its own so that a busy lane delays no heartbeat."""

    async def register(self, runner: RunnerRow) -> None: ...
    async def beat(self, runner: RunnerId, load: RunnerLoad | None = None) -> Beat: ...
    async def drain(self, runner: RunnerId) -> None:
        """Say that the runner takes no shards any more."""
        ...

    async def leave(self, runner: RunnerId) -> None: ...
    async def bury(self, runner: RunnerId, *, by: RunnerId, ttl: timedelta) -> bool:
        """Mark it dead if its heartbeat is older than ``ttl`` and ``by`` lives; one peer wins."""
        ...

    async def unburied(self) -> Sequence[RunnerId]:
        """Runners marked dead whose sessions have not been seen to end."""
        ...

    async def end_sessions(self, runner: RunnerId) -> int:
        """Signal every session of a dead runner; how many are left. 0 makes it buried."""
        ...

    async def close(self) -> None: ...


# --- shards as people see them ----------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardRow:
    shard: ShardId
    epoch: int
    runner: RunnerId | None
    acquired_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Fence:
    """What a user transaction must find unchanged to commit: its owner and its epoch."""

    shard: ShardId
    epoch: int
    runner: RunnerId


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionFilter:
    """Which executions are meant: those that pass all of it."""

    workflow: str | None = None
    statuses: Sequence[Status] = ()
    attributes: Mapping[str, object] = field(default_factory=dict[str, object])
    """Contained in those of the execution, as ``@>`` has it."""
    started_after: datetime | None = None
    """By ``created_at``: when it was asked for, not when a runner first had it."""
    started_before: datetime | None = None
    parent: Snowflake | None = None
    error: str | None = None
    """The type of the error that it failed with."""
    version: int | None = None
    """That of the code that it is pinned to."""
    after: Snowflake | None = None
    """Only executions older than this one: the last of the page before."""


# --- volatile messages ------------------------------------------------------------------------


class PostKind(IntEnum):
    """What a volatile message is. The body's encoding is ``cluster.post``'s own."""

    REQUEST = 0
    CHUNK = 1
    EXIT = 2
    ACK = 3
    INTERRUPT = 4
    SIGN = 5
    """Of life: its sender still waits for replies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Post:
    """One volatile message for the owner of a shard, or for the process that hears on a channel
    (``Storage.identity``). It is lost when its receiver or the server is."""

    kind: PostKind
    to: ShardId | UUID
    request_id: Snowflake
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Posted:
    """Where a volatile message went: the owner and the epoch it was addressed to. For a shard that
    nobody owns ``runner`` is None and nothing was stored."""

    runner: UUID | None
    epoch: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """A volatile message that came. ``shard`` is the shard it was sent to, if it was one, ``epoch``
    the epoch that shard was in: a message to its owner of then is not one to its owner of now."""

    kind: PostKind
    shard: ShardId | None
    request_id: Snowflake
    body: bytes
    epoch: int | None = None


# --- the doorbell -----------------------------------------------------------------------------


class DoorbellListener(Protocol):
    """Who wants to hear the doorbell. Called on the host loop; must not block."""

    def shards_rung(self, shards: Sequence[ShardId], *, old: bool = False) -> None:
        """``old``: what is there to deliver comes from a transaction that may have been open for
        long, and be older than what was delivered since."""
        ...

    def replies_rung(self, requests: Sequence[Snowflake]) -> None: ...
    def acks_rung(self, requests: Sequence[Snowflake]) -> None:
        """Chunks of streams that are produced here were acknowledged."""
        ...

    def post_rung(self) -> None:
        """Volatile messages have come for this process."""
        ...

    def topology_rung(self) -> None:
        """Runners came or went, or shards were released."""
        ...

    def doorbell_restored(self) -> None:
        """The doorbell listens, for the first time or again: anything may have been missed, and
        this process's waiters must be registered again."""
        ...


class Doorbell(Protocol):
    """Hints, never promises. Ringing returns at once; rings are coalesced and sent after the
    commits they speak of, so ring only after the commit."""

    @property
    def healthy(self) -> bool:
        """Whether rings arrive here now. Poll fast while they do not."""
        ...

    def ring_shards(self, shards: Iterable[ShardId]) -> None:
        """Wake the runners that own these shards now."""
        ...

    def ring_replies(self, requests: Iterable[Snowflake]) -> None:
        """Wake the processes that wait for replies of these requests."""
        ...

    def ring_acks(self, acks: Iterable[tuple[ShardId, Snowflake]]) -> None:
        """Tell the owners of these streams' shards that chunks were acknowledged."""
        ...

    def ring_topology(self) -> None: ...
    def listen(self, listener: DoorbellListener) -> None: ...


# --- the storage ------------------------------------------------------------------------------


class Storage(Protocol):
    """Everything a process asks of the database. Open it once per process, as a context manager."""

    async def open(self) -> None:
        """Check server and schema; ``SchemaMismatch``, ``ConfigurationError`` or
        ``StorageUnavailable`` say what is wrong and what to do."""
        ...

    async def close(self) -> None: ...

    @property
    def identity(self) -> UUID:
        """The name of this process's own channel."""
        ...

    @property
    def doorbell(self) -> Doorbell: ...

    def shards_in(self, group: str) -> int:
        """How many shards the group has; fixed when the group is created."""
        ...

    async def ensure_groups(self, groups: Sequence[str]) -> None:
        """Create the groups that do not exist, and learn all that do."""
        ...

    async def lease_machine(self, lease: MachineLease | None) -> MachineLease:
        """Take a machine id no live process holds, or prolong the one held."""
        ...

    async def release_machine(self, lease: MachineLease) -> None: ...

    async def save(
        self, requests: Sequence[SaveRequest], *, apart: bool = False
    ) -> Sequence[Saved]:
        """Store requests, each with its inbox row; answers in the order asked. Run again,
        unchanged, after an unknown outcome: keys and ids make that harmless.

        A key that somebody's open transaction holds makes all that have keys BLOCKED, since nobody
        knows which it is. ``apart`` finds that out on a session of its own, and makes BLOCKED only
        those that are held; ask again for them later."""
        ...

    async def save_on(self, connection: object, request: SaveRequest) -> Saved:
        """Store one request in the caller's own transaction: an asyncpg connection or a SQLAlchemy
        ``AsyncSession``/``AsyncConnection`` over asyncpg. The owner is rung by that commit."""
        ...

    async def watch(self, requests: Sequence[Snowflake]) -> None:
        """Register this process as a waiter. Read ``replies`` after this, then wait."""
        ...

    async def unwatch(self, requests: Sequence[Snowflake]) -> None:
        """This process does not wait for these any more: forget what no ring has used up."""
        ...

    async def sweep_waiters(self) -> int:
        """Forget the waiters of processes that are gone; how many there were. One that is only
        disconnected registers again when its doorbell is restored."""
        ...

    async def replies(
        self, requests: Sequence[Snowflake], *, after: Mapping[Snowflake, int] | None = None
    ) -> Sequence[StoredReply]:
        """All stored replies of the requests, by request and sequence. ``after``: of these only
        replies with a higher sequence, and at most 1,000 each."""
        ...

    async def streams(self, requests: Sequence[Snowflake]) -> Mapping[Snowflake, StreamPosition]:
        """How far these streams have come; every request asked for is in the answer."""
        ...

    async def acknowledge(
        self, acks: Sequence[AckChunk], *, wait: bool = False
    ) -> Mapping[Snowflake, int]:
        """Chunks up to and with these sequences were taken, as far as they are stored: they are
        deleted, and the position is kept (it never goes back). How far each stream is taken now
        (-1: not at all). ``wait`` registers this process as a waiter again, in the same
        transaction. Ring the doorbell afterwards."""
        ...

    async def interrupt(self, interrupts: Sequence[Interrupt]) -> Sequence[bool]:
        """Store interrupts as inbox rows of their targets' shards; False where the request is
        unknown or has its exit. Storing one again is harmless. Ring the shards afterwards."""
        ...

    async def follow(self, execution: Snowflake, follower: Snowflake) -> bool:
        """Let the exit of an execution come to another's inbox, as a REPLY row, in the commit that
        ends it; False when it has ended already. Once is enough, and twice is harmless."""
        ...

    async def post(self, messages: Sequence[Post]) -> Sequence[Posted]:
        """Send volatile messages, in order, and ring their receivers. No durable table is
        touched, and the server does not wait for its disk."""
        ...

    async def take_post(self) -> Sequence[Received]:
        """Take what has come for this process, in the order it was sent, each message once. There
        may be more than one answer holds: ask again until nothing comes."""
        ...

    async def present(self, processes: Collection[UUID]) -> Set[UUID]:
        """Which of these have a session, by ``identity``. Behind a transaction pooler one that is
        there may have none."""
        ...

    async def sweep_post(self, older_than: timedelta) -> int:
        """Delete volatile messages nobody has fetched for that long; how many there were."""
        ...

    async def request(self, request_id: Snowflake) -> EnvelopeRequest | None: ...
    async def stored(self, requests: Collection[Snowflake]) -> Collection[Snowflake]:
        """Those of the requests that are stored, ended or not."""
        ...

    async def known(self, keys: Collection[str]) -> Collection[str]:
        """Those of the deduplication keys that a request was stored with."""
        ...

    async def load(self, executions: Sequence[Snowflake]) -> Sequence[LoadedExecution]:
        """Executions with envelope and journal, for the owner to replay."""
        ...

    async def transact(
        self, fence: Fence, work: Callable[[Transaction], Awaitable[JournalRow]]
    ) -> None:
        """Run ``work`` in a transaction with the fence checked first and its journal row inserted
        last. Returns once it is known to have committed. Raises ``OwnershipLost`` when the fence
        does not hold, what ``work`` raised after rolling back, and ``StorageUnavailable`` when it
        is known not to have committed because the connection was lost. A cancellation that comes
        during the commit waits for it, and is dropped if it committed; while the outcome is being
        found out on another connection it ends the call without an answer."""
        ...

    async def find(self, workflow: str, execution_id: str) -> StoredExecution | None:
        """The execution whose run request has ``dedup_key("run", workflow, execution_id)``."""
        ...

    async def executions(self, filter: ExecutionFilter, *, limit: int) -> Sequence[StoredExecution]:
        """A page, youngest first."""
        ...

    async def start_times(self, executions: Sequence[Snowflake]) -> Mapping[Snowflake, datetime]:
        """When those of the executions are to start that are not to start at once."""
        ...

    async def workflows(self) -> Mapping[str, str]:
        """The names of all workflows that have executions, each with its shard group."""
        ...

    async def standings(self) -> Sequence[Standing]:
        """How many executions that have not ended stand where."""
        ...

    async def patch_answers(self) -> Sequence[PatchAnswer]:
        """What ``patched()`` has answered in the present runs of executions that have not ended."""
        ...

    async def history(self, execution: Snowflake) -> Sequence[JournalRow]:
        """All journal rows of the execution, run by run, in order."""
        ...

    async def heartbeats(self, executions: Sequence[Snowflake]) -> Sequence[StepHeartbeat]:
        """What running steps of the executions last reported, by execution, run, name, ordinal."""
        ...

    async def states(
        self, entities: Sequence[tuple[str, str]]
    ) -> Mapping[tuple[str, str], StoredState]:
        """Stored states of entities, by type and id; one that was never saved is missing."""
        ...

    async def entities(self, filter: EntityFilter, *, limit: int) -> Sequence[EntityRow]:
        """Entities that have a state or waiting messages, by type and id."""
        ...

    async def dead_letters(self, filter: DeadFilter, *, limit: int) -> Sequence[DeadLetter]:
        """Persisted requests to entities that ended in a ``Defect``, youngest first."""
        ...

    async def revive(self, requests: Sequence[Snowflake]) -> Sequence[ShardId]:
        """Deliver dead letters again: their exit is taken back and their failures are forgotten.
        Gives the shards of those that were dead letters, to be rung."""
        ...

    async def reopen(
        self,
        request: EnvelopeRequest,
        *,
        run: int,
        journal: Sequence[JournalRow],
        version: int | None = None,
    ) -> ShardId | None:
        """Let an execution whose ``run`` has ended, and not well, go on as the next run, which
        begins with these rows, under the headers and trace of this ``request`` of its own and,
        unless it is None, another ``version``. Its exit is taken back. The shard to ring; None
        when it has not ended so, or goes on already."""
        ...

    async def fork(
        self, request: SaveRequest, *, started_at: datetime, journal: Sequence[JournalRow]
    ) -> bool:
        """Store a start whose execution has these rows already; False when its key is taken. Ring
        its shard afterwards."""
        ...

    async def finished(
        self, terms: Sequence[Term], *, limit: int
    ) -> Sequence[Sequence[tuple[Snowflake, datetime]]]:
        """For each term the executions it is about, with when they ended: at most ``limit`` of
        them, longest ago first."""
        ...

    async def prune(
        self, executions: Sequence[Snowflake], *, before: datetime
    ) -> Sequence[Snowflake]:
        """Delete those of the executions that ended before a time, whatever of them there is: row,
        journal, exit, key, and the messages they were told and have sent. Their keys can be started
        anew. Left out are those that an inbox row or a schedule still speaks of. Those deleted."""
        ...

    async def prune_runs(
        self, until: Mapping[str, datetime], *, after: Snowflake, limit: int, runs: int
    ) -> Pruned:
        """Delete of executions that go on the oldest runs, if they are over since a time, by
        workflow; at most ``runs`` of each. Looks at ``limit`` executions behind one, by id."""
        ...

    async def prune_requests(self, term: RequestTerm, *, after: Snowflake, limit: int) -> Pruned:
        """Delete the term's requests that are done with; their keys are free. Left out are those
        that an inbox row, a queue or a schedule speaks of, and those that executions have sent.
        Looks at ``limit`` of all requests behind one, by id."""
        ...

    async def write_pause(self, workflow: str, *, paused: bool, reason: str, by: str) -> bool:
        """Pause a workflow as a whole, or end that; False when it is so already. Ring the topology
        afterwards: runners read the pauses with each heartbeat."""
        ...

    async def pauses(self) -> Mapping[str, Pause]:
        """What was last said of each workflow that was ever paused as a whole, by name."""
        ...

    async def schedules(self, names: Sequence[str] | None = None) -> Sequence[ScheduleRow]:
        """Schedules by name; all of them without ``names``."""
        ...

    async def fires(self, schedule: str, *, limit: int) -> Sequence[Fire]:
        """The latest instants of a schedule that were dealt with, youngest first."""
        ...

    async def queue(self, name: str) -> QueueContents:
        """A queue and its items, for the owner that takes it over."""
        ...

    async def queue_rows(self, names: Sequence[str] | None = None) -> Sequence[QueueRow]:
        """As ``queues``, but nothing is counted."""
        ...

    async def queues(self, names: Sequence[str] | None = None) -> Sequence[QueueCounts]:
        """Queues by name, with how many items they have; all of them without ``names``."""
        ...

    async def place(self, request_id: Snowflake) -> Place | None:
        """Where a message to an entity or an item of a queue is; None when it has ended."""
        ...

    async def shards(self) -> Sequence[ShardRow]: ...
    async def lock_holders(self) -> Sequence[LockHolder]:
        """The sessions that hold locks of shards and are no lane of a live runner."""
        ...

    async def runners(self) -> Sequence[RunnerRow]:
        """Live runners, and those that ended within the last day."""
        ...

    async def waiting_rows(self, execution: Snowflake) -> int:
        """How many inbox rows wait for the execution."""
        ...

    async def open_registry(self, runner: RunnerId) -> Registry:
        """A register on a connection of its own, bound to the event loop that calls this."""
        ...

    async def open_lane(self, runner: RunnerId, index: int) -> LaneSession: ...
