"""What the documents say against what is there: files, links, snippets, tests, commands."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import report
from cli.app import app

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).name)
SNIPPET = re.compile(r"^(?:<!-- (\S+) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@EVERY_PAGE
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text())

    assert [link for link in links if not (page.parent / link).exists()] == []


@EVERY_PAGE
def test_the_python_shown_is_that_of_a_file_the_tests_run(page: Path) -> None:
    for file, code in SNIPPET.findall(page.read_text()):
        assert file, f"no file is named above this snippet:\n{code}"
        assert code in (ROOT / file).read_text(), f"not, or no longer, in {file}:\n{code}"


@EVERY_PAGE
def test_the_files_named_exist(page: Path) -> None:
    text = page.read_text()
    named = re.findall(
        r"`((?:engine|cli|tests|examples|bench|migrations|docs)/[\w./]*)(?:`|:(?!:))", text
    )
    queries = [f"engine/storage/{query}" for query in re.findall(r"`(sql/\w+\.sql)`", text)]

    assert [name for name in [*named, *queries] if not (ROOT / name).exists()] == []


@EVERY_PAGE
def test_the_commands_shown_exist(page: Path) -> None:
    known = {
        command.name or (command.callback.__name__ if command.callback else "")
        for command in app.registered_commands
    } | {group.name for group in app.registered_groups}
    shown = {name for line in shell_lines(page) for name in re.findall(r"^outlast (\w+)", line)}
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    made = {name for line in shell_lines(page) for name in re.findall(r"^make ([a-z-]+)", line)}

    assert shown - known == set()
    assert made - targets == set()


def test_the_tables_of_figures_are_those_of_the_file_that_is_named() -> None:
    page = report.PAGE.read_text()

    assert report.RESULTS.search(page)
    assert len(report.MARKED.findall(page)) == page.count("<!-- end -->") > 0
    assert report.filled(page) == page, "run python -m bench.report"


def test_each_guarantee_names_tests_and_each_of_them_exists() -> None:
    page = (ROOT / "docs/invariants.md").read_text()
    sections = re.split(r"^## ", page, flags=re.MULTILINE)
    named = {
        section.split(":")[0]: re.findall(r"^- `(\S+)::(\w+)`$", section, re.MULTILINE)
        for section in sections[1:]
    }

    assert [f"G{n}" for n in range(1, 11) if not named.get(f"G{n}")] == []
    for file, function in [test for tests in named.values() for test in tests]:
        tree = ast.parse((ROOT / "tests" / file).read_text())
        defined = {node.name for node in ast.walk(tree) if isinstance(node, Functions)}
        assert function in defined, f"{file} has no {function}"


def test_the_glossary_is_sorted() -> None:
    page = (ROOT / "docs/glossary.md").read_text()
    words = re.findall(r"^\*\*([^*]+)\*\*", page, re.MULTILINE)

    assert words == sorted(words, key=str.lower)


Functions = ast.FunctionDef | ast.AsyncFunctionDef


def shell_lines(page: Path) -> Iterator[str]:
    for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
