"""Durable workflows in plain Python that need nothing but PostgreSQL.

Define workflows and entities as classes, register them with a ``Runner``, start, poll and join
executions with a ``Client``. See the README for a program.
"""

from engine.bulk import BulkResult
from engine.client import Client
from engine.cluster.cron import Cron
from engine.cluster.entity import Entity
from engine.cluster.entity_client import EntityClient
from engine.cluster.events import (
    EntityRegistered,
    ShardingRegistrationEvent,
    SingletonRegistered,
)
from engine.cluster.limits import Rate
from engine.cluster.queue import Debounce, Queue
from engine.cluster.receiver import ReplyReceiver
from engine.cluster.rpc import rpc
from engine.cluster.sharding import Sharding
from engine.cluster.singleton import Singleton, SingletonContext
from engine.cluster.state import State
from engine.cluster.timetable import Overlap
from engine.core.envelope import AckChunk, EnvelopeRequest, Interrupt, Uninterruptible
from engine.core.errors import (
    AlreadyStarted,
    ConfigurationError,
    EngineError,
    EntityDefect,
    ErrorDetails,
    ExecutionFailed,
    ExecutionInterrupted,
    ExecutionTerminated,
    FailureError,
    GiveUp,
    InvalidPayload,
    MailboxFull,
    NonDeterminism,
    NoRunner,
    NotFound,
    NotGranted,
    NotRegistered,
    OwnershipLost,
    PayloadConflict,
    RequestFailed,
    RetryLater,
    SchemaMismatch,
    ShuttingDown,
    StepFailed,
    StepTimedOut,
    StorageUnavailable,
    StreamTaken,
    UpdateRejected,
)
from engine.core.ids import EntityAddress, EntityId, EntityType, RunnerId, ShardId, Snowflake
from engine.core.journal import JournalKind, Outcome
from engine.core.outcome import (
    DeadLetterInfo,
    ExecutionInfo,
    Failed,
    Interrupted,
    JournalEvent,
    Pending,
    Succeeded,
    Terminated,
)
from engine.core.reply import Defect, Exit, Failure, Reply, ReplyChunk, ReplyWithExit, Success
from engine.core.retry import RetryPolicy
from engine.core.seal import Codec
from engine.core.status import Status
from engine.health import RunnerHealth
from engine.item import Item
from engine.queues import QueueHandle, QueueInfo
from engine.runner import Runner
from engine.schedule import FireInfo, Schedule, ScheduleInfo
from engine.settings import Settings
from engine.storage.schedules import FireOutcome
from engine.storage.transaction import Transaction
from engine.versions import PatchInfo, VersionInfo
from engine.with_start import WithStart
from engine.workflow.activity import activity, transaction
from engine.workflow.activity_group import ActivityGroup
from engine.workflow.cron import WorkflowCron
from engine.workflow.deferred import Deferred
from engine.workflow.definition import Workflow
from engine.workflow.execution import UNCHANGED, Execution
from engine.workflow.handlers import query, signal, update

__all__ = [
    "UNCHANGED",
    "AckChunk",
    "ActivityGroup",
    "AlreadyStarted",
    "BulkResult",
    "Client",
    "Codec",
    "ConfigurationError",
    "Cron",
    "DeadLetterInfo",
    "Debounce",
    "Defect",
    "Deferred",
    "EngineError",
    "Entity",
    "EntityAddress",
    "EntityClient",
    "EntityDefect",
    "EntityId",
    "EntityRegistered",
    "EntityType",
    "EnvelopeRequest",
    "ErrorDetails",
    "Execution",
    "ExecutionFailed",
    "ExecutionInfo",
    "ExecutionInterrupted",
    "ExecutionTerminated",
    "Exit",
    "Failed",
    "Failure",
    "FailureError",
    "FireInfo",
    "FireOutcome",
    "GiveUp",
    "Interrupt",
    "Interrupted",
    "InvalidPayload",
    "Item",
    "JournalEvent",
    "JournalKind",
    "MailboxFull",
    "NoRunner",
    "NonDeterminism",
    "NotFound",
    "NotGranted",
    "NotRegistered",
    "Outcome",
    "Overlap",
    "OwnershipLost",
    "PatchInfo",
    "PayloadConflict",
    "Pending",
    "Queue",
    "QueueHandle",
    "QueueInfo",
    "Rate",
    "Reply",
    "ReplyChunk",
    "ReplyReceiver",
    "ReplyWithExit",
    "RequestFailed",
    "RetryLater",
    "RetryPolicy",
    "Runner",
    "RunnerHealth",
    "RunnerId",
    "Schedule",
    "ScheduleInfo",
    "SchemaMismatch",
    "Settings",
    "ShardId",
    "Sharding",
    "ShardingRegistrationEvent",
    "ShuttingDown",
    "Singleton",
    "SingletonContext",
    "SingletonRegistered",
    "Snowflake",
    "State",
    "Status",
    "StepFailed",
    "StepTimedOut",
    "StorageUnavailable",
    "StreamTaken",
    "Succeeded",
    "Success",
    "Terminated",
    "Transaction",
    "Uninterruptible",
    "UpdateRejected",
    "VersionInfo",
    "WithStart",
    "Workflow",
    "WorkflowCron",
    "activity",
    "query",
    "rpc",
    "signal",
    "transaction",
    "update",
]
