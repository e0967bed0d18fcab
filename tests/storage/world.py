"""Processes around one database, of either storage, and short ways to make what they store."""

import itertools
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from engine.core.clock import SystemClock
from engine.core.envelope import AckChunk, EnvelopeRequest, Interrupt, ReplyTo, dedup_key
from engine.core.errors import ErrorDetails
from engine.core.ids import EntityAddress, EntityId, EntityType, RunnerId, ShardId, Snowflake
from engine.core.journal import JournalKind, JournalRow
from engine.core.reply import Defect, ReplyKind, encode_exit
from engine.core.seal import Codecs
from engine.core.status import Status
from engine.storage.memory import MemoryDatabase, MemoryStorage
from engine.storage.protocol import (
    Commit,
    ExecutionStart,
    ExecutionUpdate,
    LaneSession,
    NewReply,
    Registry,
    RunnerRow,
    SaveOutcome,
    SaveRequest,
    Storage,
    StreamPosition,
    Sweep,
)
from engine.storage.sealed import sealed
from tests.eventually import eventually

ONE = ShardId("default", 1)
TWO = ShardId("default", 2)
THREE = ShardId("default", 3)
NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)

_ids = itertools.count(1 << 30)


def next_id() -> Snowflake:
    return Snowflake(next(_ids))


@dataclass(slots=True, kw_only=True)
class Process:
    """A process with its storage; a runner if it registered."""

    storage: Storage
    runner: RunnerId
    registry: Registry

    async def lane(self, index: int = 0) -> LaneSession:
        return await self.storage.open_lane(self.runner, index)


@dataclass(slots=True, kw_only=True)
class World:
    """A database and the processes that use it; leaving it closes them all."""

    open_storage: Callable[[RunnerId, bool], Storage]
    stack: AsyncExitStack = field(default_factory=AsyncExitStack)
    codecs: Codecs | None = None

    def seal(self, codecs: Codecs) -> None:
        """Let processes from now on read and write values with these codecs."""
        self.codecs = codecs

    async def process(self, *, notifications: bool = True, register: bool = True) -> Process:
        runner = RunnerId(uuid4())
        storage = self.open_storage(runner, notifications)
        if self.codecs is not None:
            storage = sealed(storage, self.codecs)
        await storage.open()
        self.stack.push_async_callback(storage.close)
        await storage.ensure_groups(["default"])
        registry = await storage.open_registry(runner)
        self.stack.push_async_callback(registry.close)
        if register:
            await registry.register(RunnerRow(id=runner, groups=["default"], host="here"))
        return Process(storage=storage, runner=runner, registry=registry)

    async def runner_with_lane(self) -> tuple[Process, LaneSession]:
        process = await self.process()
        lane = await process.lane()
        self.stack.push_async_callback(lane.close)
        return process, lane


@asynccontextmanager
async def memory_world(database: MemoryDatabase | None = None) -> AsyncIterator[World]:
    shared = database or MemoryDatabase(SystemClock())
    world = World(
        open_storage=lambda runner, notifications: MemoryStorage(
            shared, identity=runner, shards_per_group=12, notifications=notifications
        )
    )
    async with world.stack:
        yield world


@asynccontextmanager
async def postgres_world(dsn: str) -> AsyncIterator[World]:
    from engine.storage.postgres import PostgresStorage

    world = World(
        open_storage=lambda runner, notifications: PostgresStorage(
            dsn, identity=runner, shards_per_group=12, notifications=notifications
        )
    )
    async with world.stack:
        yield world


class Ear:
    """Hears the doorbell and remembers."""

    def __init__(self) -> None:
        self.shards: set[ShardId] = set()
        self.replies: set[Snowflake] = set()
        self.acks: set[Snowflake] = set()
        self.post = 0
        self.topology = 0
        self.restored = 0

    def shards_rung(self, shards: Sequence[ShardId], *, old: bool = False) -> None:
        self.shards.update(shards)

    def replies_rung(self, requests: Sequence[Snowflake]) -> None:
        self.replies.update(requests)

    def acks_rung(self, requests: Sequence[Snowflake]) -> None:
        self.acks.update(requests)

    def post_rung(self) -> None:
        self.post += 1

    def topology_rung(self) -> None:
        self.topology += 1

    def doorbell_restored(self) -> None:
        self.restored += 1


async def listening(process: Process) -> Ear:
    """An ear that hears what is rung from now on."""
    ear = Ear()
    process.storage.doorbell.listen(ear)
    await eventually(lambda: ear.restored)
    return ear


async def take_over(world: World, lane: LaneSession, *shards: ShardId) -> LaneSession:
    """The owner's process is lost as it is; the lane of another runner that took its shards."""
    lane.terminate()
    _, successor = await world.runner_with_lane()
    wanted, taken = shards or (ONE,), dict[ShardId, int]()

    async def all_taken() -> bool:
        taken.update(await successor.acquire([each for each in wanted if each not in taken]))
        return len(taken) == len(wanted)

    await eventually(all_taken)
    return successor


# --- what is stored -------------------------------------------------------------------------------


def message(
    *,
    shard: ShardId = ONE,
    id: Snowflake | None = None,
    key: str | None = None,
    payload: bytes = b"1",
    entity: str = "sku-1",
    entity_type: str = "Stock",
    deliver_at: datetime | None = None,
    reply_to: ReplyTo | None = None,
    wait: bool = False,
) -> SaveRequest:
    """A request to an entity."""
    envelope = EnvelopeRequest(
        request_id=next_id() if id is None else id,
        address=EntityAddress(shard, EntityType(entity_type), EntityId(entity)),
        tag="reserve",
        payload=payload,
        key=key,
        deliver_at=deliver_at,
        reply_to=reply_to,
    )
    return SaveRequest(envelope=envelope, wait=wait)


def run_key(execution_id: str, workflow: str = "Fulfil") -> str:
    return dedup_key("run", workflow, execution_id)


def start(
    execution_id: str,
    *,
    shard: ShardId = ONE,
    workflow: str = "Fulfil",
    version: int = 1,
    attributes: bytes | None = None,
    parent: Snowflake | None = None,
    payload: bytes = b"{}",
    wait: bool = False,
) -> SaveRequest:
    """The request that starts an execution."""
    envelope = EnvelopeRequest(
        request_id=next_id(),
        address=EntityAddress(shard, EntityType(workflow), EntityId(execution_id)),
        tag="run",
        payload=payload,
        key=run_key(execution_id, workflow),
    )
    execution = ExecutionStart(version=version, attributes=attributes, parent=parent)
    return SaveRequest(envelope=envelope, execution=execution, wait=wait)


def event(
    execution_id: str, *, shard: ShardId = ONE, key: str | None = None, payload: bytes = b"true"
) -> SaveRequest:
    """Something for a live execution: a signal, a resolve, an interrupt."""
    envelope = EnvelopeRequest(
        request_id=next_id(),
        address=EntityAddress(shard, EntityType("Fulfil"), EntityId(execution_id)),
        tag="signal",
        payload=payload,
        key=key,
    )
    return SaveRequest(envelope=envelope, target=run_key(execution_id))


def step(execution: Snowflake, position: int, *, run: int = 1, payload: bytes = b"") -> JournalRow:
    return JournalRow(
        execution=execution,
        run=run,
        position=position,
        kind=JournalKind.STEP,
        name="charge",
        ordinal=position,
        at=NOW,
        payload=payload,
    )


def success(
    request: SaveRequest | Snowflake,
    value: bytes = b"1",
    *,
    sequence: int = 0,
    reply_to: ReplyTo | None = None,
) -> NewReply:
    return NewReply(
        request_id=request.envelope.request_id if isinstance(request, SaveRequest) else request,
        sequence=sequence,
        kind=ReplyKind.SUCCESS,
        payload=value,
        reply_to=reply_to,
    )


def defect(request: SaveRequest, *, sequence: int = 0, message: str = "lost") -> NewReply:
    """The exit of a request that could not be handled."""
    kind, payload = encode_exit(Defect(ErrorDetails("RunnerLost", message)))
    return NewReply(
        request_id=request.envelope.request_id, sequence=sequence, kind=kind, payload=payload
    )


def ack(request: SaveRequest, sequence: int) -> AckChunk:
    return AckChunk(request_id=request.envelope.request_id, id=next_id(), sequence=sequence)


def interrupt(request: SaveRequest) -> Interrupt:
    return Interrupt(request_id=request.envelope.request_id, address=request.envelope.address)


def chunk(request: SaveRequest, sequence: int, value: bytes = b"0") -> NewReply:
    return NewReply(
        request_id=request.envelope.request_id,
        sequence=sequence,
        kind=ReplyKind.CHUNK,
        payload=value,
    )


def update(
    execution: Snowflake,
    status: Status,
    *,
    run: int = 1,
    started_at: datetime | None = None,
    finished_at: datetime | None = None,
    wake_at: datetime | None = None,
    waiting: str | None = None,
) -> Commit:
    """A commit that changes one execution's row."""
    return Commit(
        shard=ONE,
        execution=ExecutionUpdate(
            request_id=execution,
            run=run,
            status=status,
            started_at=started_at,
            finished_at=finished_at,
            wake_at=wake_at,
            waiting=waiting,
        ),
    )


async def sweep_of(
    lane: LaneSession,
    *shards: ShardId,
    in_flight: tuple[int, ...] = (),
    resident: tuple[Snowflake, ...] = (),
    held: tuple[int, ...] = (),
    admitted: tuple[int, ...] | None = None,
    floors: tuple[int, ...] = (),
    limit: int = 100,
    horizon: timedelta = timedelta(0),
) -> Sweep:
    return await lane.sweep(
        shards or (ONE,),
        in_flight=in_flight,
        resident=resident,
        held=[held] * len(shards or (ONE,)),
        admitted=admitted,
        floors=floors,
        limit=limit,
        horizon=horizon,
    )


def ids_of(sweep: Sweep) -> list[Snowflake]:
    return [row.envelope.request_id for row in sweep.rows]


async def seqs_of(lane: LaneSession) -> list[int]:
    return [row.seq for row in (await sweep_of(lane)).rows]


async def save_one(process: Process, request: SaveRequest) -> SaveRequest:
    (saved,) = await process.storage.save([request])
    assert saved.outcome is SaveOutcome.CREATED
    return request


async def position_of(process: Process, request: SaveRequest) -> StreamPosition:
    id = request.envelope.request_id
    return (await process.storage.streams([id]))[id]


async def failures_of(lane: LaneSession, *shards: ShardId) -> Mapping[Snowflake, int]:
    """How often the delivery of each request that waits has failed."""
    rows = (await sweep_of(lane, *shards, limit=1000)).rows
    return {row.envelope.request_id: row.failures for row in rows}
