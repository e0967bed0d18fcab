"""SQL lives in ``engine/storage/sql`` and is read there, not assembled elsewhere."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
PACKAGES = ("engine", "cli")
STATEMENT = re.compile(
    r"""^\s*(
        select\s.+\sfrom\s | select\s+pg_\w+\( | insert\s+into\s | update\s+\S+\s+set\s
        | delete\s+from\s | with\s+\w+\s+as\s*\( | create\s+(table|index|schema|database)\s
        | (un)?listen\s+\S+\s*$ | notify\s+\S+\s*$
    )""",
    re.IGNORECASE | re.VERBOSE | re.DOTALL,
)
# A session's own set-up is where the session is made.
EXEMPT = {Path("engine/_migrations"), Path("engine/testing")}


def modules() -> list[Path]:
    found = (path for package in PACKAGES for path in (CHECKOUT / package).rglob("*.py"))
    relative = (path.relative_to(CHECKOUT) for path in found)
    return sorted(path for path in relative if not EXEMPT & set(path.parents))


def literals(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """The strings of a module, without its docstrings; the fixed parts of its f-strings too."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        match node:
            case ast.Constant(value=str(text)) if id(node) not in docstrings:
                yield node.lineno, text
            case _:
                pass


@pytest.mark.parametrize("module", modules(), ids=str)
def test_no_statement_is_written_in_python(module: Path) -> None:
    tree = ast.parse((CHECKOUT / module).read_text())

    found = [f"{module}:{line}" for line, text in literals(tree) if STATEMENT.match(text)]

    assert found == []


def test_every_query_has_a_name_and_a_purpose() -> None:
    for path in (CHECKOUT / "engine/storage/sql").glob("*.sql"):
        lines = path.read_text().splitlines()
        named = [number for number, line in enumerate(lines) if line.startswith("-- name: ")]
        assert named, f"{path.name} names no query"
        for number in named:
            assert lines[number + 1].startswith("-- "), f"{path.name}:{number + 1} has no purpose"


@pytest.mark.parametrize(
    "statement",
    ["select 1 from t", "insert into t values (1)", "\n  with a as (select 1) select * from a"],
)
def test_the_heuristic_knows_a_statement(statement: str) -> None:
    assert STATEMENT.match(statement)


@pytest.mark.parametrize("text", ["update your settings", "select one of them", "with care"])
def test_the_heuristic_knows_prose(text: str) -> None:
    assert not STATEMENT.match(text)
