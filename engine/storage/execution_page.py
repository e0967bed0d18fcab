"""The one query that is composed: a page of executions, filtered by what people ask for.

From ``inspection``; through SQLAlchemy's description of the tables.
"""

import json

from sqlalchemy import Dialect, Select, Text, and_, cast, literal, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect

from engine.storage.protocol import ExecutionFilter
from engine.storage.tables import metadata_for

_dialect: Dialect = asyncpg_dialect()  # type: ignore[no-untyped-call]


def execution_page(schema: str, filter: ExecutionFilter, limit: int) -> tuple[str, list[object]]:
    """The text and arguments of the query, as asyncpg takes them."""
    return _compiled(_page(schema, filter, limit))


def _page(schema: str, filter: ExecutionFilter, limit: int) -> Select[tuple[object, ...]]:
    tables = metadata_for(schema).tables
    execution, shard = tables[f"{schema}.executions"].c, tables[f"{schema}.shards"]
    wanted = [
        execution.request_id,
        execution.workflow,
        execution.execution_id,
        execution.group_id,
        execution.shard,
        execution.status,
        execution.run,
        execution.version,
        execution.created_at,
        execution.started_at,
        execution.finished_at,
        execution.wake_at,
        execution.waiting,
        execution.parent,
        cast(execution.attributes, Text).label("attributes"),
        execution.failures,
        shard.c.runner_id,
    ]
    same_shard = and_(shard.c.group_id == execution.group_id, shard.c.shard == execution.shard)
    page = select(*wanted).select_from(tables[f"{schema}.executions"].outerjoin(shard, same_shard))
    if filter.workflow is not None:
        page = page.where(execution.workflow == filter.workflow)
    if filter.execution_id is not None:
        page = page.where(execution.execution_id == filter.execution_id)
    if filter.statuses:
        page = page.where(execution.status.in_([status.value for status in filter.statuses]))
    if filter.attributes:
        attributes = cast(literal(json.dumps(dict(filter.attributes)), Text), JSONB)
        page = page.where(execution.attributes.op("@>")(attributes))
    if filter.started_after is not None:
        page = page.where(execution.created_at > filter.started_after)
    if filter.parent is not None:
        page = page.where(execution.parent == filter.parent)
    if filter.after is not None:
        page = page.where(execution.request_id < filter.after)
    return page.order_by(execution.request_id.desc()).limit(limit)


def _compiled(page: Select[tuple[object, ...]]) -> tuple[str, list[object]]:
    """The text and arguments as asyncpg takes them."""
    compiled = page.compile(dialect=_dialect, compile_kwargs={"render_postcompile": True})
    values = compiled.params
    return str(compiled), [values[name] for name in compiled.positiontup or ()]
