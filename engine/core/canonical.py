"""Sets have no order but their JSON has one: sort it, so that equal values have equal bytes.

Used by ``codec``: keys, digests and comparisons are made of those bytes, in processes whose hash
orders differ. Only types that contain sets pay for it.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any, cast

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

Schema = Mapping[str, Any]
_SETS = frozenset({"set", "frozenset"})


def set_sorter(adapter: TypeAdapter[Any]) -> Callable[[bytes], bytes] | None:
    """What puts the sets in a payload of this type in order; None for a type without sets."""
    if not _has_set(adapter.core_schema):
        return None
    try:
        schema = adapter.json_schema(mode="serialization", by_alias=False)
    except PydanticInvalidForJsonSchema:
        return None
    definitions = schema.get("$defs", {})

    def sort(payload: bytes) -> bytes:
        ordered = _sorted(schema, json.loads(payload), definitions)
        return json.dumps(ordered, ensure_ascii=False, separators=(",", ":")).encode()

    return sort


def _sorted(schema: Any, value: Any, definitions: Schema) -> Any:
    """The value with each array that the schema calls a set in order."""
    if not isinstance(schema, dict) or not isinstance(value, dict | list):
        return value
    node = cast("dict[str, Any]", schema)
    if "$ref" in node:
        return _sorted(definitions.get(node["$ref"].rsplit("/", 1)[-1]), value, definitions)
    branches = [*node.get("anyOf", ()), *node.get("oneOf", ()), *node.get("allOf", ())]
    lists = [b for b in branches if b.get("type") == "array" and not b.get("uniqueItems")]
    for branch in branches:
        if not (lists and branch.get("uniqueItems")):  # a list that may be one keeps its order
            value = _sorted(branch, value, definitions)
    if isinstance(value, dict):
        fields, other = node.get("properties", {}), node.get("additionalProperties")
        items = cast("dict[str, Any]", value).items()
        return {name: _sorted(fields.get(name, other), each, definitions) for name, each in items}
    elements = cast("list[Any]", value)
    if node.get("type") != "array":
        return elements
    first, rest = node.get("prefixItems", ()), node.get("items")
    elements = [
        _sorted(first[i] if i < len(first) else rest, each, definitions)
        for i, each in enumerate(elements)
    ]
    if node.get("uniqueItems"):
        elements.sort(key=lambda each: json.dumps(each, sort_keys=True))
    return elements


def _has_set(schema: object) -> bool:
    if isinstance(schema, dict):
        node = cast("dict[str, Any]", schema)
        return node.get("type") in _SETS or any(
            _has_set(part) for name, part in node.items() if name != "metadata"
        )
    return isinstance(schema, list | tuple) and any(map(_has_set, cast("list[object]", schema)))
