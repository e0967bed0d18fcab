"""pyright and mypy, both strict: good programs have no error, every planted mistake is found."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
HERE = Path(__file__).parent
MISTAKES = HERE / "mistakes.py"
PROGRAMS = sorted(path for path in HERE.glob("*.py") if path != MISTAKES)
MARK = "# expect-error"

Found = dict[Path, dict[int, str]]

pytestmark = pytest.mark.timeout(300)


def pyright() -> Found:
    report = json.loads(
        _run("pyright", "--outputjson", "--project", str(HERE), "--pythonpath", sys.executable)
    )
    assert report["summary"]["filesAnalyzed"] == len(PROGRAMS) + 1, report
    found: Found = {}
    for each in report["generalDiagnostics"]:
        if each["severity"] != "information":
            line = each["range"]["start"]["line"] + 1
            found.setdefault(Path(each["file"]), {})[line] = each["message"]
    return found


def mypy() -> Found:
    files = map(str, [*PROGRAMS, MISTAKES])
    lines = _run("mypy", "--no-pretty", "--no-error-summary", *files).splitlines()
    found: Found = {}
    for line in lines:
        match = re.match(r"(?P<path>[^:]+\.py):(?P<line>\d+): (?P<kind>\w+): (?P<text>.*)", line)
        assert match, line
        if match["kind"] == "error":
            path = CHECKOUT / match["path"]
            found.setdefault(path, {})[int(match["line"])] = match["text"]
    return found


@pytest.mark.parametrize("check", [pyright, mypy])
def test_good_programs_have_no_error_and_exactly_the_marked_lines_are_rejected(
    check: Callable[[], Found],
) -> None:
    found = check()
    assert {path.name: errors for path, errors in found.items() if path != MISTAKES} == {}

    rejected = found.get(MISTAKES, {})
    lines = MISTAKES.read_text().splitlines()
    marked = {number for number, line in enumerate(lines, 1) if line.endswith(MARK)}
    assert marked
    assert {number: lines[number - 1].strip() for number in marked - rejected.keys()} == {}
    assert {number: rejected[number] for number in rejected.keys() - marked} == {}


def test_good_programs_need_no_cast_and_no_ignore() -> None:
    for path in PROGRAMS:
        if path != Path(__file__):
            assert not re.search(r"type: *ignore|pyright:|\bcast\(|\bAny\b", path.read_text())


def _run(module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout
