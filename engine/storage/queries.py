"""The runtime SQL, read from ``sql/`` and made to name one schema.

The files are written for the schema ``engine`` and run in psql as they are; every other module of
storage asks here for the text of a query by its name.
"""

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from engine.core.errors import ConfigurationError

_FOLDER = Path(__file__).with_name("sql")
_NAME = re.compile(r"\A-- name: ([a-z_]+)\n-- (?=\S)")
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,49}")
_QUALIFIER = re.compile(r"\bengine\.")
_INTEGERS = re.compile(r"\$(\d+)::(bigint|int|smallint)\[\]")
_ROWS = re.compile(r"unnest\(((?:\s*\$\d+::\w+\[\],?)+?)\s*\)( with ordinality)?(?=\s+as\b)")

_ALONE = {"finish", "save"}
"""The queries that are asked for one row as well."""


class Queries:
    """Every query of ``sql/`` by name, for one schema; by ``alone(name)`` what some are for one row
    in place of each of their lists, which without arrays costs the server a third less.

    Arrays of integers are sent as text: the driver looks at each element of a list for longer than
    it takes to write and read its digits (0.6 microseconds; for 0.06 and 0.06).
    """

    __slots__ = ("_integers", "_texts", "schema")

    def __init__(self, schema: str) -> None:
        """``ConfigurationError`` when the schema's name is not a plain identifier."""
        self.schema: str = schema_name(schema)
        qualifier = f'"{schema}".'
        self._integers: dict[str, list[int]] = {}
        self._texts: dict[str, str] = {}
        for name, source in _sources().items():
            text = _QUALIFIER.sub(qualifier, source)
            self._integers[name] = sorted({int(number) for number, _ in _INTEGERS.findall(text)})
            self._texts[name] = _INTEGERS.sub(r"$\1::text::\2[]", text)
            if name in _ALONE:
                self._integers[alone(name)] = []
                self._texts[alone(name)] = _ROWS.sub(_one_row, text)

    def __getitem__(self, name: str) -> str:
        return self._texts[name]

    def call(self, name: str, *args: object) -> list[Any]:
        """The text of a query, and its arguments as the driver takes them."""
        call: list[Any] = [self._texts[name], *args]
        for place in self._integers[name]:
            column: Iterable[int | None] | None = call[place]
            if column is not None:
                call[place] = f"{{{str([*column])[1:-1].replace('None', 'NULL')}}}"
        return call

    def names(self) -> list[str]:
        return sorted(_sources())


def alone(name: str) -> str:
    return f"{name} alone"


def _one_row(rows: re.Match[str]) -> str:
    """``unnest($1::int[], $2::text[])`` as ``(values ($1::int, $2::text))``."""
    nth = ", 1" if rows[2] else ""
    return f"(values ({rows[1].replace('[]', '')}{nth}))"


def schema_name(schema: str) -> str:
    """The name, if it can stand in SQL and in a channel's name; else ``ConfigurationError``."""
    if _SCHEMA.fullmatch(schema) is None:
        raise ConfigurationError(
            f"the schema {schema!r} must be a lower-case identifier of at most 50 letters, digits"
            " and underscores that does not begin with a digit"
        )
    return schema


@lru_cache(maxsize=1)
def _sources() -> dict[str, str]:
    texts: dict[str, str] = {}
    for path in sorted(_FOLDER.glob("*.sql")):
        text = path.read_text(encoding="utf-8")
        named = _NAME.match(text)
        if named is None or named[1] != path.stem:
            raise ConfigurationError(
                f"{path} must begin with '-- name: {path.stem}' and a line of purpose;"
                " install outlast again"
            )
        texts[path.stem] = text.rstrip().removesuffix(";")
    return texts
