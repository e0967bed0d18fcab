"""The one query that is composed: a page of executions, filtered by what people ask for.

From ``inspection``; through SQLAlchemy's description of the tables.
"""

import json
from dataclasses import replace
from datetime import UTC
from typing import Final

from sqlalchemy import (
    ColumnElement,
    Dialect,
    FromClause,
    Select,
    Text,
    and_,
    cast,
    func,
    literal,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql.asyncpg import dialect as asyncpg_dialect

from engine.core.ids import Snowflake, first_snowflake
from engine.storage.protocol import ExecutionFilter
from engine.storage.tables import metadata_for

_dialect: Dialect = asyncpg_dialect()  # type: ignore[no-untyped-call]
_PROBED: Final = 1000
_AHEAD: Final = 60_000 << 22
"""An id is made before its start is stored: by so much, a minute, the clock may have been ahead of
the database's."""
_LAST: Final = (1 << 63) - 1


def execution_page(schema: str, filter: ExecutionFilter, limit: int) -> tuple[str, list[object]]:
    """The text and arguments of the query, as asyncpg takes them."""
    return _compiled(_page(schema, filter, limit))


def _page(schema: str, filter: ExecutionFilter, limit: int) -> Select[tuple[object, ...]]:
    tables = metadata_for(schema).tables
    executions, shard = tables[f"{schema}.executions"], tables[f"{schema}.shards"]
    if filter.attributes:
        found = _by_attributes(executions, filter, limit)
    else:
        found = _of_each_status(executions, filter, limit)
    execution = found.c
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
        execution.error,
        execution.failures,
        shard.c.runner_id,
    ]
    same_shard = and_(shard.c.group_id == execution.group_id, shard.c.shard == execution.shard)
    page = select(*wanted).select_from(found.outerjoin(shard, same_shard))
    return page.order_by(execution.request_id.desc()).limit(limit)


def _by_attributes(executions: FromClause, filter: ExecutionFilter, limit: int) -> FromClause:
    """What the youngest have to offer, and only if that does not do, what the index finds. The
    planner cannot tell common attributes from rare ones: it would read all executions for these, or
    sort all that have those."""
    recent = _youngest(executions, _behind(executions, filter), _PROBED).cte("recent")
    first = _youngest(recent, _conditions(recent, filter), limit).cte("first")
    oldest = select(func.min(recent.c.request_id)).scalar_subquery()
    enough = select(func.count() >= limit).select_from(first).scalar_subquery()
    others = [*_conditions(executions, filter), executions.c.request_id < oldest, ~enough]
    rest = (
        select(executions)
        .where(*others)
        .order_by((executions.c.request_id + 0).desc())  # which no index offers
        .limit(limit)
        .cte("rest")
    )
    return union_all(select(first), select(rest)).subquery()


def _of_each_status(executions: FromClause, filter: ExecutionFilter, limit: int) -> FromClause:
    """The youngest of each status that is asked for: an index has those in order, but not those of
    several together, for which the planner may read all executions instead."""
    statuses = [[status] for status in dict.fromkeys(filter.statuses)] or [[]]
    pages = [
        _youngest(executions, _conditions(executions, replace(filter, statuses=status)), limit)
        for status in statuses
    ]
    return union_all(*(select(page.subquery()) for page in pages)).subquery()


def _youngest(
    table: FromClause, conditions: list[ColumnElement[bool]], limit: int
) -> Select[tuple[object, ...]]:
    return select(table).where(*conditions).order_by(table.c.request_id.desc()).limit(limit)


def _behind(table: FromClause, filter: ExecutionFilter) -> list[ColumnElement[bool]]:
    """Where to begin. An index on times does not lead there: it has not the order of a page."""
    ends = [] if filter.after is None else [filter.after]
    if filter.started_before is not None:
        made = first_snowflake(filter.started_before.astimezone(UTC))
        ends.append(Snowflake(min(made + _AHEAD, _LAST)))
    return [table.c.request_id < min(ends)] if ends else []


def _conditions(table: FromClause, filter: ExecutionFilter) -> list[ColumnElement[bool]]:
    execution, wanted = table.c, _behind(table, filter)
    if filter.workflow is not None:
        wanted.append(execution.workflow == filter.workflow)
    if filter.statuses:
        wanted.append(execution.status.in_([status.value for status in filter.statuses]))
    if filter.attributes:
        attributes = cast(literal(json.dumps(dict(filter.attributes)), Text), JSONB)
        wanted.append(execution.attributes.op("@>")(attributes))
    if filter.started_after is not None:
        wanted.append(execution.created_at > filter.started_after)
    if filter.started_before is not None:
        wanted.append(execution.created_at < filter.started_before)
    if filter.error is not None:
        wanted.append(execution.error == filter.error)
    if filter.version is not None:
        wanted.append(execution.version == filter.version)
    if filter.parent is not None:
        wanted.append(execution.parent == filter.parent)
    return wanted


def _compiled(page: Select[tuple[object, ...]]) -> tuple[str, list[object]]:
    """The text and arguments as asyncpg takes them."""
    compiled = page.compile(dialect=_dialect, compile_kwargs={"render_postcompile": True})
    values = compiled.params
    return str(compiled), [values[name] for name in compiled.positiontup or ()]
