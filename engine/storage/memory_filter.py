"""Whether an execution passes a filter, as the inspection queries of PostgreSQL see it."""

import json
from collections.abc import Mapping
from typing import cast

from engine.storage.protocol import ExecutionFilter, StoredExecution


def passes(execution: StoredExecution, filter: ExecutionFilter) -> bool:
    """All conditions but ``after``, which is a place in the order."""
    return (
        filter.workflow in (None, execution.workflow)
        and (not filter.statuses or execution.status in filter.statuses)
        and (filter.parent is None or execution.parent == filter.parent)
        and filter.error in (None, execution.error)
        and filter.version in (None, execution.version)
        and (filter.started_after is None or execution.created_at > filter.started_after)
        and (filter.started_before is None or execution.created_at < filter.started_before)
        and (not filter.attributes or _contains(_attributes(execution), filter.attributes))
    )


def _attributes(execution: StoredExecution) -> object:
    return None if execution.attributes is None else json.loads(execution.attributes)


def _contains(value: object, part: object) -> bool:
    """Containment of JSON as Postgres's ``@>`` has it."""
    if isinstance(part, Mapping):
        wanted = cast("Mapping[str, object]", part)
        if not isinstance(value, Mapping):
            return False
        found = cast("Mapping[str, object]", value)
        return all(key in found and _contains(found[key], each) for key, each in wanted.items())
    if isinstance(part, list | tuple):
        if not isinstance(value, list):
            return False
        items = cast("list[object]", value)
        return all(
            any(_contains(item, each) for item in items) for each in cast("list[object]", part)
        )
    return value == part and isinstance(value, bool) == isinstance(part, bool)
