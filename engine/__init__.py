"""Durable workflows in plain Python that need nothing but PostgreSQL.

Define workflows and entities as classes, register them with a ``Runner``, start, poll and join
executions with a ``Client``. See the README for a program.
"""

from engine.client import Client
from engine.cluster.entity import Entity
from engine.cluster.rpc import rpc
from engine.cluster.sharding import ReplyReceiver, Sharding
from engine.cluster.singleton import Singleton, SingletonContext
from engine.core.envelope import AckChunk, EnvelopeRequest, Interrupt, Uninterruptible
from engine.core.errors import (
    AlreadyStarted,
    ConfigurationError,
    EngineError,
    ErrorDetails,
    ExecutionFailed,
    ExecutionInterrupted,
    ExecutionTerminated,
    FailureError,
    InvalidPayload,
    MailboxFull,
    NonDeterminism,
    NotFound,
    NotRegistered,
    OwnershipLost,
    PayloadConflict,
    RequestFailed,
    SchemaMismatch,
    StepFailed,
    StepTimedOut,
    StorageUnavailable,
    UpdateRejected,
)
from engine.core.ids import EntityAddress, EntityId, EntityType, RunnerId, ShardId, Snowflake
from engine.core.journal import JournalKind, Outcome
from engine.core.reply import Defect, Exit, Failure, Reply, ReplyChunk, ReplyWithExit, Success
from engine.core.retry import RetryPolicy
from engine.core.status import Status
from engine.execution import Execution
from engine.outcome import (
    ExecutionInfo,
    Failed,
    Interrupted,
    JournalEvent,
    Pending,
    Succeeded,
    Terminated,
)
from engine.runner import Runner
from engine.settings import Settings
from engine.storage.transaction import Transaction
from engine.workflow.activity import activity, transaction
from engine.workflow.deferred import Deferred
from engine.workflow.definition import Workflow

__all__ = [
    "AckChunk",
    "AlreadyStarted",
    "Client",
    "ConfigurationError",
    "Defect",
    "Deferred",
    "EngineError",
    "Entity",
    "EntityAddress",
    "EntityId",
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
    "Interrupt",
    "Interrupted",
    "InvalidPayload",
    "JournalEvent",
    "JournalKind",
    "MailboxFull",
    "NonDeterminism",
    "NotFound",
    "NotRegistered",
    "Outcome",
    "OwnershipLost",
    "PayloadConflict",
    "Pending",
    "Reply",
    "ReplyChunk",
    "ReplyReceiver",
    "ReplyWithExit",
    "RequestFailed",
    "RetryPolicy",
    "Runner",
    "RunnerId",
    "SchemaMismatch",
    "Settings",
    "ShardId",
    "Sharding",
    "Singleton",
    "SingletonContext",
    "Snowflake",
    "Status",
    "StepFailed",
    "StepTimedOut",
    "StorageUnavailable",
    "Succeeded",
    "Success",
    "Terminated",
    "Transaction",
    "Uninterruptible",
    "UpdateRejected",
    "Workflow",
    "activity",
    "rpc",
    "transaction",
]
