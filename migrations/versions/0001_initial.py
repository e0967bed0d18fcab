"""initial

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

TABLES = (
    "shard_groups",
    "shards",
    "runners",
    "runner_heartbeats",
    "machine_ids",
    "envelopes",
    "inbox",
    "dedup",
    "replies",
    "acks",
    "post",
    "waiters",
    "executions",
    "journal",
    "step_heartbeats",
    "entity_states",
    "schedules",
    "schedule_fires",
    "pauses",
    "queues",
    "queue_items",
)

UPDATED = {"fillfactor": 75}


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    make_cluster(schema)
    make_messages(schema)
    make_replies(schema)
    make_executions(schema)
    make_entities(schema)
    make_schedules(schema)
    make_pauses(schema)
    make_queues(schema)
    make_functions(schema)


def downgrade() -> None:
    schema = op.get_context().version_table_schema
    op.execute(f"drop function {quoted(schema)}codec_of(bytea)")
    for table in TABLES:
        op.drop_table(table, schema=schema)


def number(name: str, kind: type[sa.Integer], *, default: int | None = None) -> sa.Column[int]:
    given = None if default is None else sa.text(str(default))
    return sa.Column(name, kind(), autoincrement=False, nullable=False, server_default=given)


def boolean(name: str) -> sa.Column[bool]:
    return sa.Column(name, sa.Boolean, nullable=False, server_default=sa.text("false"))


def at(name: str, *, null: bool = False, default: bool = False) -> sa.Column[object]:
    given = sa.text("clock_timestamp()") if default else None
    return sa.Column(name, sa.DateTime(timezone=True), nullable=null, server_default=given)


def make_cluster(schema: str | None) -> None:
    op.create_table(
        "shard_groups",
        sa.Column("name", sa.Text, primary_key=True),
        number("group_id", sa.Integer),
        number("shards", sa.Integer),
        sa.UniqueConstraint("group_id", name="shard_groups_group_id_key"),
        schema=schema,
    )
    op.create_table(
        "shards",
        number("group_id", sa.Integer),
        number("shard", sa.SmallInteger),
        number("epoch", sa.BigInteger, default=0),
        sa.Column("runner_id", sa.Uuid),
        at("acquired_at", null=True),
        at("server_started_at", null=True),
        sa.PrimaryKeyConstraint("group_id", "shard"),
        schema=schema,
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "runners",
        sa.Column("id", sa.Uuid, primary_key=True),
        sa.Column("groups", ARRAY(sa.Text), nullable=False),
        sa.Column("weight", sa.Float, nullable=False, server_default=sa.text("1")),
        sa.Column("host", sa.Text, nullable=False),
        number("pid", sa.Integer),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("types", JSONB, nullable=False),
        number("machine", sa.SmallInteger),
        boolean("draining"),
        at("started_at", default=True),
        at("died_at", null=True),
        at("buried_at", null=True),
        schema=schema,
    )
    op.create_table(
        "runner_heartbeats",
        sa.Column("runner_id", sa.Uuid, primary_key=True),
        at("beat_at"),
        sa.Column("load", JSONB),
        schema=schema,
        prefixes=["UNLOGGED"],
        postgresql_with={"fillfactor": 50},
    )
    op.create_table(
        "machine_ids",
        number("machine", sa.SmallInteger),
        sa.Column("holder", sa.Uuid, nullable=False),
        at("expires_at"),
        sa.PrimaryKeyConstraint("machine"),
        schema=schema,
    )


def make_messages(schema: str | None) -> None:
    op.create_table(
        "envelopes",
        number("request_id", sa.BigInteger),
        number("group_id", sa.Integer),
        number("shard", sa.SmallInteger),
        sa.Column("entity_type", sa.Text, nullable=False),
        sa.Column("entity_id", sa.Text, nullable=False),
        sa.Column("tag", sa.Text, nullable=False),
        number("uninterruptible", sa.SmallInteger, default=0),
        sa.Column("reply_execution", sa.BigInteger),
        sa.Column("reply_group_id", sa.Integer),
        sa.Column("reply_shard", sa.SmallInteger),
        at("deliver_at", null=True),
        sa.Column("key", sa.Text),
        sa.Column("headers", sa.LargeBinary),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("request_id"),
        schema=schema,
    )
    op.create_table(
        "inbox",
        number("group_id", sa.Integer),
        number("shard", sa.SmallInteger),
        sa.Column("seq", sa.BigInteger, sa.Identity(always=True), nullable=False),
        number("kind", sa.SmallInteger),
        number("request_id", sa.BigInteger),
        sa.Column("execution", sa.BigInteger),
        sa.Column("entity", sa.BigInteger),
        number("failures", sa.SmallInteger, default=0),
        boolean("trial"),
        at("due_at", null=True),
        sa.PrimaryKeyConstraint("seq"),
        schema=schema,
    )
    op.create_index(
        "inbox_ready",
        "inbox",
        ["group_id", "shard", "seq"],
        schema=schema,
        postgresql_where=sa.text("due_at is null"),
    )
    op.create_index(
        "inbox_due",
        "inbox",
        ["group_id", "shard", "due_at"],
        schema=schema,
        postgresql_where=sa.text("due_at is not null"),
    )
    op.create_index(
        "inbox_request",
        "inbox",
        ["request_id"],
        schema=schema,
    )
    op.create_index(
        "inbox_execution",
        "inbox",
        ["execution"],
        schema=schema,
        postgresql_where=sa.text("execution <> request_id"),
    )
    op.create_index(
        "inbox_trial",
        "inbox",
        ["group_id", "shard"],
        schema=schema,
        postgresql_where=sa.text("trial"),
    )
    op.create_table(
        "dedup",
        sa.Column("key", sa.Text(collation="C"), primary_key=True),
        number("request_id", sa.BigInteger),
        schema=schema,
    )


def make_replies(schema: str | None) -> None:
    op.create_table(
        "replies",
        number("request_id", sa.BigInteger),
        number("sequence", sa.Integer),
        number("kind", sa.SmallInteger),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("request_id", "sequence"),
        schema=schema,
    )
    op.create_index(
        "replies_dead",
        "replies",
        ["request_id"],
        schema=schema,
        postgresql_where=sa.text("kind = 5"),
    )
    op.create_table(
        "acks",
        number("request_id", sa.BigInteger),
        number("sequence", sa.Integer),
        sa.PrimaryKeyConstraint("request_id"),
        schema=schema,
        postgresql_with=UPDATED,
    )
    op.create_table(
        "post",
        sa.Column("channel", sa.Uuid, nullable=False),
        sa.Column("seq", sa.BigInteger, sa.Identity(always=True), nullable=False),
        number("kind", sa.SmallInteger),
        sa.Column("group_id", sa.Integer),
        sa.Column("shard", sa.SmallInteger),
        sa.Column("epoch", sa.BigInteger),
        number("request_id", sa.BigInteger),
        at("sent_at", default=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("channel", "seq"),
        schema=schema,
        prefixes=["UNLOGGED"],
    )
    op.create_table(
        "waiters",
        number("request_id", sa.BigInteger),
        sa.Column("channel", sa.Text(collation="C"), nullable=False),
        sa.PrimaryKeyConstraint("request_id", "channel"),
        schema=schema,
        prefixes=["UNLOGGED"],
    )


def make_executions(schema: str | None) -> None:
    op.create_table(
        "executions",
        number("request_id", sa.BigInteger),
        sa.Column("workflow", sa.Text, nullable=False),
        sa.Column("execution_id", sa.Text, nullable=False),
        number("group_id", sa.Integer),
        number("shard", sa.SmallInteger),
        number("status", sa.SmallInteger),
        number("run", sa.Integer, default=1),
        number("version", sa.Integer),
        sa.Column("parent", sa.BigInteger),
        at("created_at", default=True),
        at("started_at", null=True),
        at("finished_at", null=True),
        at("wake_at", null=True),
        sa.Column("waiting", sa.Text),
        sa.Column("attributes", JSONB),
        sa.Column("error", sa.Text),
        number("failures", sa.SmallInteger, default=0),
        number("failed_position", sa.Integer, default=0),
        boolean("trial"),
        sa.Column("followers", ARRAY(sa.BigInteger)),
        sa.PrimaryKeyConstraint("request_id"),
        schema=schema,
    )
    op.create_index(
        "executions_wake",
        "executions",
        ["group_id", "shard", "wake_at"],
        schema=schema,
        postgresql_where=sa.text("wake_at is not null"),
    )
    op.create_index(
        "executions_runs",
        "executions",
        ["workflow", "request_id"],
        schema=schema,
        postgresql_where=sa.text("run > 1 and finished_at is null"),
    )
    op.create_index(
        "executions_trial",
        "executions",
        ["group_id", "shard"],
        schema=schema,
        postgresql_where=sa.text("trial"),
    )
    index_executions(schema)
    op.create_table(
        "journal",
        number("execution", sa.BigInteger),
        number("run", sa.Integer),
        number("position", sa.Integer),
        number("kind", sa.SmallInteger),
        number("outcome", sa.SmallInteger),
        number("attempt", sa.Integer),
        number("ordinal", sa.Integer),
        number("digest", sa.BigInteger),
        sa.Column("source", sa.BigInteger),
        at("at"),
        at("started_at", null=True),
        at("due_at", null=True),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("execution", "run", "position"),
        schema=schema,
    )
    op.create_index(
        "journal_patched",
        "journal",
        ["execution", "run"],
        schema=schema,
        postgresql_where=sa.text("kind = 18"),
    )
    op.create_table(
        "step_heartbeats",
        number("execution", sa.BigInteger),
        number("run", sa.Integer),
        number("step", sa.BigInteger),
        number("ordinal", sa.Integer),
        number("attempt", sa.Integer),
        at("at"),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("details", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("execution", "run", "step"),
        schema=schema,
    )


def index_executions(schema: str | None) -> None:
    for name, columns, where in (
        ("executions_workflow", ["workflow", "request_id"], None),
        ("executions_status", ["status", "request_id"], None),
        ("executions_created", ["created_at"], None),
        ("executions_parent", ["parent", "request_id"], "parent is not null"),
        ("executions_error", ["error", "request_id"], "error is not null"),
        (
            "executions_finished",
            ["workflow", "status", "finished_at"],
            "finished_at is not null",
        ),
    ):
        given = None if where is None else sa.text(where)
        op.create_index(name, "executions", columns, schema=schema, postgresql_where=given)
    op.create_index(
        "executions_attributes",
        "executions",
        ["attributes"],
        schema=schema,
        postgresql_using="gin",
        postgresql_ops={"attributes": "jsonb_path_ops"},
        postgresql_where=sa.text("attributes is not null"),
    )


def make_entities(schema: str | None) -> None:
    op.create_table(
        "entity_states",
        sa.Column("entity_type", sa.Text(collation="C"), nullable=False),
        sa.Column("entity_id", sa.Text(collation="C"), nullable=False),
        number("group_id", sa.Integer),
        number("shard", sa.SmallInteger),
        number("version", sa.BigInteger),
        at("saved_at", default=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("entity_type", "entity_id"),
        schema=schema,
        postgresql_with=UPDATED,
    )


def make_schedules(schema: str | None) -> None:
    op.create_table(
        "schedules",
        sa.Column("name", sa.Text, primary_key=True),
        number("group_id", sa.Integer),
        number("shard", sa.SmallInteger),
        sa.Column("schedule", sa.Text, nullable=False),
        sa.Column("timezone", sa.Text, nullable=False),
        sa.Column("settings", JSONB, nullable=False),
        boolean("paused"),
        at("done_until"),
        at("next_at", null=True),
        at("buffered", null=True),
        sa.Column("running", ARRAY(sa.BigInteger), nullable=False, server_default=sa.text("'{}'")),
        schema=schema,
        postgresql_with=UPDATED,
    )
    op.create_table(
        "schedule_fires",
        sa.Column("schedule", sa.Text, nullable=False),
        at("instant"),
        number("outcome", sa.SmallInteger),
        sa.Column("request_id", sa.BigInteger),
        boolean("manual"),
        at("at"),
        sa.PrimaryKeyConstraint("schedule", "instant"),
        schema=schema,
    )


def make_pauses(schema: str | None) -> None:
    op.create_table(
        "pauses",
        sa.Column("workflow", sa.Text, primary_key=True),
        sa.Column("paused", sa.Boolean, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("author", sa.Text, nullable=False),
        at("at", default=True),
        schema=schema,
    )


def make_queues(schema: str | None) -> None:
    op.create_table(
        "queues",
        sa.Column("name", sa.Text, primary_key=True),
        number("group_id", sa.Integer),
        number("shard", sa.SmallInteger),
        sa.Column("settings", JSONB, nullable=False),
        boolean("paused"),
        at("next_at", null=True),
        schema=schema,
        postgresql_with=UPDATED,
    )
    op.create_table(
        "queue_items",
        sa.Column("request_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("queue", sa.Text(collation="C"), nullable=False),
        number("seq", sa.BigInteger),
        number("priority", sa.Integer),
        sa.Column("key", sa.Text(collation="C"), nullable=False),
        sa.Column("shard", sa.SmallInteger),
        at("due_at", null=True),
        sa.Column("debounce", sa.Text),
        at("since", null=True),
        schema=schema,
    )
    op.create_index(
        "queue_items_waiting",
        "queue_items",
        ["queue", "priority", "key", "seq"],
        schema=schema,
        postgresql_where=sa.text("shard is null and due_at is null"),
    )
    op.create_index(
        "queue_items_held",
        "queue_items",
        ["queue"],
        schema=schema,
        postgresql_where=sa.text("shard is not null or due_at is not null"),
    )


def make_functions(schema: str | None) -> None:
    """``codec_of``: the number of the codec that has encoded a payload; 0 for a plain one."""
    op.execute(
        f"create function {quoted(schema)}codec_of(payload bytea) returns smallint"
        " language sql immutable parallel safe return"
        " case when substr(payload, 1, 4) = decode('006f7574', 'hex') and octet_length(payload) > 4"
        " then get_byte(payload, 4) else 0 end"
    )


def quoted(schema: str | None) -> str:
    return "" if schema is None else f'"{schema}".'
