"""The schema as it should be. Migrations make it, a test compares; nothing queries through it but
inspection filters. Runtime SQL is in ``sql/``.

Shards are stored as (group_id, shard): ``group_id`` is the group's random int4, which is also the
first key of its advisory locks. Hot tables have no foreign keys and no index on what changes often.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
    Uuid,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

_UPDATED = {"fillfactor": 75}
"""Room in its page for the next version of a row: ``docs/performance.md`` says what for."""


def metadata_for(schema: str) -> MetaData:
    """The tables of one engine schema."""
    metadata = MetaData(schema=schema)

    def at(name: str, *, null: bool = False, default: bool = False) -> Column[object]:
        server_default = text("clock_timestamp()") if default else None
        return Column(name, DateTime(timezone=True), nullable=null, server_default=server_default)

    def at_key(name: str) -> Column[object]:
        return Column(name, DateTime(timezone=True), primary_key=True)

    Table(
        "shard_groups",
        metadata,
        Column("name", Text, primary_key=True),
        Column("group_id", Integer, nullable=False),
        Column("shards", Integer, nullable=False),
        UniqueConstraint("group_id", name="shard_groups_group_id_key"),
    )
    Table(
        "shards",
        metadata,
        Column("group_id", Integer, primary_key=True, autoincrement=False),
        Column("shard", SmallInteger, primary_key=True, autoincrement=False),
        Column("epoch", BigInteger, nullable=False, server_default=text("0")),
        Column("runner_id", Uuid),
        at("acquired_at", null=True),
        at("server_started_at", null=True),
        postgresql_with={"fillfactor": 50},
    )
    Table(
        "runners",
        metadata,
        Column("id", Uuid, primary_key=True),
        Column("groups", ARRAY(Text), nullable=False),
        Column("weight", Float, nullable=False, server_default=text("1")),
        Column("host", Text, nullable=False),
        Column("pid", Integer, nullable=False),
        Column("version", Text, nullable=False),
        Column("types", JSONB, nullable=False),
        Column("machine", SmallInteger, nullable=False),
        Column("draining", Boolean, nullable=False, server_default=text("false")),
        at("started_at", default=True),
        at("died_at", null=True),
        at("buried_at", null=True),
    )
    Table(
        "runner_heartbeats",
        metadata,
        Column("runner_id", Uuid, primary_key=True),
        at("beat_at"),
        Column("load", JSONB),
        prefixes=["UNLOGGED"],
        postgresql_with={"fillfactor": 50},
    )
    Table(
        "machine_ids",
        metadata,
        Column("machine", SmallInteger, primary_key=True, autoincrement=False),
        Column("holder", Uuid, nullable=False),
        at("expires_at"),
    )
    Table(
        "envelopes",
        metadata,
        Column("request_id", BigInteger, primary_key=True, autoincrement=False),
        Column("group_id", Integer, nullable=False),
        Column("shard", SmallInteger, nullable=False),
        Column("entity_type", Text, nullable=False),
        Column("entity_id", Text, nullable=False),
        Column("tag", Text, nullable=False),
        Column("uninterruptible", SmallInteger, nullable=False, server_default=text("0")),
        Column("reply_execution", BigInteger),
        Column("reply_group_id", Integer),
        Column("reply_shard", SmallInteger),
        at("deliver_at", null=True),
        Column("key", Text),
        Column("headers", LargeBinary),
        Column("payload", LargeBinary, nullable=False),
    )
    inbox = Table(
        "inbox",
        metadata,
        Column("group_id", Integer, nullable=False),
        Column("shard", SmallInteger, nullable=False),
        Column("seq", BigInteger, Identity(always=True), primary_key=True),
        Column("kind", SmallInteger, nullable=False),
        Column("request_id", BigInteger, nullable=False),
        Column("execution", BigInteger),
        Column("entity", BigInteger),
        Column("failures", SmallInteger, nullable=False, server_default=text("0")),
        Column("trial", Boolean, nullable=False, server_default=text("false")),
        at("due_at", null=True),
    )
    # What is due later is in none but its own index: sweeps would walk over it time and again.
    Index(
        "inbox_ready",
        inbox.c.group_id,
        inbox.c.shard,
        inbox.c.seq,
        postgresql_where=inbox.c.due_at.is_(None),
    )
    Index(
        "inbox_due",
        inbox.c.group_id,
        inbox.c.shard,
        inbox.c.due_at,
        postgresql_where=inbox.c.due_at.is_not(None),
    )
    # Request ids grow, so that an insert only appends: 2 % of the time of a save.
    Index("inbox_request", inbox.c.request_id)
    # What an execution is told, and by it; not what starts it, so that a start costs nothing here.
    Index(
        "inbox_execution",
        inbox.c.execution,
        postgresql_where=inbox.c.execution != inbox.c.request_id,
    )
    Index("inbox_trial", inbox.c.group_id, inbox.c.shard, postgresql_where=inbox.c.trial)
    Table(
        "dedup",
        metadata,
        Column("key", Text(collation="C"), primary_key=True),
        Column("request_id", BigInteger, nullable=False),
    )
    replies = Table(
        "replies",
        metadata,
        Column("request_id", BigInteger, primary_key=True, autoincrement=False),
        Column("sequence", Integer, primary_key=True, autoincrement=False),
        Column("kind", SmallInteger, nullable=False),
        Column("payload", LargeBinary, nullable=False),
    )
    Index(
        "replies_dead",
        replies.c.request_id,
        postgresql_where=replies.c.kind == 5,
    )
    Table(
        "acks",
        metadata,
        Column("request_id", BigInteger, primary_key=True, autoincrement=False),
        Column("sequence", Integer, nullable=False),
        postgresql_with=_UPDATED,
    )
    Table(
        "post",
        metadata,
        Column("channel", Uuid, primary_key=True),
        Column("seq", BigInteger, Identity(always=True), primary_key=True),
        Column("kind", SmallInteger, nullable=False),
        Column("group_id", Integer),
        Column("shard", SmallInteger),
        Column("epoch", BigInteger),
        Column("request_id", BigInteger, nullable=False),
        at("sent_at", default=True),
        Column("body", LargeBinary, nullable=False),
        prefixes=["UNLOGGED"],
    )
    Table(
        "entity_states",
        metadata,
        Column("entity_type", Text(collation="C"), primary_key=True),
        Column("entity_id", Text(collation="C"), primary_key=True),
        Column("group_id", Integer, nullable=False),
        Column("shard", SmallInteger, nullable=False),
        Column("version", BigInteger, nullable=False),
        at("saved_at", default=True),
        Column("payload", LargeBinary, nullable=False),
        postgresql_with=_UPDATED,
    )
    Table(
        "schedules",
        metadata,
        Column("name", Text, primary_key=True),
        Column("group_id", Integer, nullable=False),
        Column("shard", SmallInteger, nullable=False),
        Column("schedule", Text, nullable=False),
        Column("timezone", Text, nullable=False),
        Column("settings", JSONB, nullable=False),
        Column("paused", Boolean, nullable=False, server_default=text("false")),
        at("done_until"),
        at("next_at", null=True),
        at("buffered", null=True),
        Column("running", ARRAY(BigInteger), nullable=False, server_default=text("'{}'")),
        postgresql_with=_UPDATED,
    )
    Table(
        "schedule_fires",
        metadata,
        Column("schedule", Text, primary_key=True),
        at_key("instant"),
        Column("outcome", SmallInteger, nullable=False),
        Column("request_id", BigInteger),
        Column("manual", Boolean, nullable=False, server_default=text("false")),
        at("at"),
    )
    Table(
        "pauses",
        metadata,
        Column("workflow", Text, primary_key=True),
        Column("paused", Boolean, nullable=False),
        Column("reason", Text, nullable=False),
        Column("author", Text, nullable=False),
        at("at", default=True),
    )
    Table(
        "queues",
        metadata,
        Column("name", Text, primary_key=True),
        Column("group_id", Integer, nullable=False),
        Column("shard", SmallInteger, nullable=False),
        Column("settings", JSONB, nullable=False),
        Column("paused", Boolean, nullable=False, server_default=text("false")),
        at("next_at", null=True),
        postgresql_with=_UPDATED,
    )
    items = Table(
        "queue_items",
        metadata,
        Column("request_id", BigInteger, primary_key=True, autoincrement=False),
        Column("queue", Text(collation="C"), nullable=False),
        Column("seq", BigInteger, nullable=False),
        Column("priority", Integer, nullable=False),
        Column("key", Text(collation="C"), nullable=False),
        Column("shard", SmallInteger),
        at("due_at", null=True),
        Column("debounce", Text),
        at("since", null=True),
    )
    Index(
        "queue_items_waiting",
        items.c.queue,
        items.c.priority,
        items.c.key,
        items.c.seq,
        postgresql_where=text("shard is null and due_at is null"),
    )
    Index(
        "queue_items_held",
        items.c.queue,
        postgresql_where=text("shard is not null or due_at is not null"),
    )
    Table(
        "waiters",
        metadata,
        Column("request_id", BigInteger, primary_key=True, autoincrement=False),
        Column("channel", Text(collation="C"), primary_key=True),
        prefixes=["UNLOGGED"],
    )
    executions = Table(
        "executions",
        metadata,
        Column("request_id", BigInteger, primary_key=True, autoincrement=False),
        Column("workflow", Text, nullable=False),
        Column("execution_id", Text, nullable=False),
        Column("group_id", Integer, nullable=False),
        Column("shard", SmallInteger, nullable=False),
        Column("status", SmallInteger, nullable=False),
        Column("run", Integer, nullable=False, server_default=text("1")),
        Column("version", Integer, nullable=False),
        Column("parent", BigInteger),
        at("created_at", default=True),
        at("started_at", null=True),
        at("finished_at", null=True),
        at("wake_at", null=True),
        Column("waiting", Text),
        Column("attributes", JSONB),
        Column("error", Text),
        Column("failures", SmallInteger, nullable=False, server_default=text("0")),
        Column("failed_position", Integer, nullable=False, server_default=text("0")),
        Column("trial", Boolean, nullable=False, server_default=text("false")),
        Column("followers", ARRAY(BigInteger)),
    )
    Index(
        "executions_wake",
        executions.c.group_id,
        executions.c.shard,
        executions.c.wake_at,
        postgresql_where=executions.c.wake_at.is_not(None),
    )
    # What people look for. All of it together costs 1.5 % of a start, 2 % of the flush of its end.
    Index("executions_workflow", executions.c.workflow, executions.c.request_id)
    Index("executions_status", executions.c.status, executions.c.request_id)
    Index("executions_created", executions.c.created_at)
    Index(
        "executions_parent",
        executions.c.parent,
        executions.c.request_id,
        postgresql_where=executions.c.parent.is_not(None),
    )
    Index(
        "executions_error",
        executions.c.error,
        executions.c.request_id,
        postgresql_where=executions.c.error.is_not(None),
    )
    Index(
        "executions_attributes",
        executions.c.attributes,
        postgresql_using="gin",
        postgresql_ops={"attributes": "jsonb_path_ops"},
        postgresql_where=executions.c.attributes.is_not(None),
    )
    # What is to be pruned: by workflow and status, longest ago first.
    Index(
        "executions_finished",
        executions.c.workflow,
        executions.c.status,
        executions.c.finished_at,
        postgresql_where=executions.c.finished_at.is_not(None),
    )
    # What has left runs behind, and goes on.
    Index(
        "executions_runs",
        executions.c.workflow,
        executions.c.request_id,
        postgresql_where=text("run > 1 and finished_at is null"),
    )
    Index(
        "executions_trial",
        executions.c.group_id,
        executions.c.shard,
        postgresql_where=executions.c.trial,
    )
    journal = Table(
        "journal",
        metadata,
        Column("execution", BigInteger, primary_key=True, autoincrement=False),
        Column("run", Integer, primary_key=True, autoincrement=False),
        Column("position", Integer, primary_key=True, autoincrement=False),
        Column("kind", SmallInteger, nullable=False),
        Column("outcome", SmallInteger, nullable=False),
        Column("attempt", Integer, nullable=False),
        Column("ordinal", Integer, nullable=False),
        Column("digest", BigInteger, nullable=False),
        Column("source", BigInteger),
        at("at"),
        at("started_at", null=True),
        at("due_at", null=True),
        Column("name", Text, nullable=False),
        Column("payload", LargeBinary, nullable=False),
    )
    Index(
        "journal_patched",
        journal.c.execution,
        journal.c.run,
        postgresql_where=journal.c.kind == text("18"),
    )
    Table(
        "step_heartbeats",
        metadata,
        Column("execution", BigInteger, primary_key=True, autoincrement=False),
        Column("run", Integer, primary_key=True, autoincrement=False),
        Column("step", BigInteger, primary_key=True, autoincrement=False),
        Column("ordinal", Integer, nullable=False),
        Column("attempt", Integer, nullable=False),
        at("at"),
        Column("name", Text, nullable=False),
        Column("details", LargeBinary, nullable=False),
    )
    return metadata
