"""A revision as later versions may have them: it adds to what grows, to what changes, and anew."""

import sqlalchemy as sa
from alembic import op

revision = "LATER"
down_revision = "HEAD"
branch_labels = None
depends_on = None

CHANGED = ("envelopes", "inbox", "replies", "executions", "journal", "dedup", "shards", "runners")


def upgrade() -> None:
    schema = op.get_context().version_table_schema
    for table in CHANGED:
        op.add_column(table, sa.Column("added", sa.Integer, nullable=True), schema=schema)
        told = sa.Column("told", sa.Text, nullable=False, server_default="")
        op.add_column(table, told, schema=schema)
    op.create_table("trials", sa.Column("id", sa.BigInteger, primary_key=True), schema=schema)
    op.create_index("schedules_trial", "schedules", ["name"], schema=schema)
