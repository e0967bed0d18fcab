"""``history --export``, ``replay`` and ``lint``: what CI runs, without a database."""

import json
from pathlib import Path

import pytest

from engine import Runner, Workflow, activity
from tests.cli.terminal import do, outlast, settings


class Greet(Workflow[str, str]):
    @classmethod
    def key(cls, request: str) -> str:
        return request

    async def execute(self, request: str) -> str:
        return await self.spell(request)

    @activity
    async def spell(self, name: str) -> str:
        return f"Hello {name}"


class Changed(Greet):
    name = "Greet"

    async def execute(self, request: str) -> str:
        return await self.spell(request.upper())


class Other(Workflow[str, str]):
    async def execute(self, request: str) -> str:
        return request


app = [Greet()]
changed = [Changed(), Other()]
other = [Other()]


def runner() -> Runner:
    """An app that makes a runner, and names no database."""
    return Runner().register(Greet())


CARELESS = """
import time
from engine import Workflow

class Careless(Workflow[int, float]):
    async def execute(self, request: int) -> float:
        return time.time()

app = [Careless()]
"""


@pytest.fixture
async def exported(dsn: str, tmp_path: Path) -> Path:
    """The histories of two executions in one file."""
    async with Runner(settings(dsn)).register(*app) as serving:
        for name in "ada", "bob":
            await serving.client.execute(Greet, name)
        ends = [await do("history", name, "--export", dsn=dsn) for name in ("ada", "Greet/bob")]
    file = tmp_path / "greetings.jsonl"
    file.write_text("".join(end.out for end in ends))
    return file


def test_a_history_that_fits_is_said_to_fit(exported: Path) -> None:
    for name in "app", "runner":
        done = outlast("replay", f"{__name__}:{name}", str(exported))
        table = outlast("replay", f"{__name__}:{name}", str(exported), "--table")

        assert (done.code, done.err) == (0, "")
        assert [(each["id"], each["fits"]) for each in done.lines] == [
            ("Greet/ada", True),
            ("Greet/bob", True),
        ]
        assert f"{exported}: Greet/bob fits, 1 events" in table.out


def test_one_that_does_not_is_named_with_the_line_and_exit_code_1(exported: Path) -> None:
    done = outlast("replay", f"{__name__}:changed", str(exported))

    assert done.code == 1
    assert "2 of 2 histories do not fit this code" in done.err
    error = done.lines[0]["error"]
    assert "step spell#1" in error
    source = Path(__file__).read_text().splitlines()
    changed_at = 1 + next(n for n, line in enumerate(source) if "request.upper()" in line)
    assert f"{__file__}:{changed_at} in Changed.execute" in error


def test_a_workflow_that_the_app_does_not_have_is_a_mismatch(exported: Path) -> None:
    done = outlast("replay", f"{__name__}:other", str(exported))

    assert done.code == 1
    assert "the app has no workflow Greet; it has Other" in done.lines[0]["error"]


@pytest.mark.parametrize(
    ("text", "said"),
    [("", "is empty"), ('{"run": 1}\n', "line 1 is not of an exported history"), (None, "read")],
)
def test_a_file_that_is_no_export_is_a_usage_error(
    text: str | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "x.jsonl"
    if text is not None:
        file.write_text(text)

    done = outlast("replay", f"{__name__}:app", str(file))

    assert done.code == 2
    assert said in done.err


def test_lint_points_at_the_line_in_both_forms(tmp_path: Path) -> None:
    file = tmp_path / "careless.py"
    file.write_text(CARELESS)

    done = outlast("lint", str(tmp_path))
    table = outlast("lint", str(file), "--table")

    assert done.code == table.code == 1
    (found,) = done.lines
    assert (found["file"], found["line"], found["code"]) == (str(file), 7, "OUT101")
    assert found["fix"] == "use self.now()"
    assert f"{file}:7:16: OUT101 time.time() reads the system's clock" in table.out
    assert "1 place to correct" in table.err


def test_lint_takes_an_app_and_finds_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "careless_app.py").write_text(CARELESS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)

    done = outlast("lint", "careless_app:app")

    assert done.code == 1
    assert [each["where"] for each in done.lines] == ["Careless.execute"]


def test_lint_says_that_all_is_well() -> None:
    done = outlast("lint", f"{__name__}:app", "--table")

    assert (done.code, done.out) == (0, "nothing found\n")


def test_lint_of_what_is_not_there_is_a_usage_error() -> None:
    done = outlast("lint", "nowhere/at/all.py")

    assert done.code == 2
    assert "there is no nowhere/at/all.py" in done.err


async def test_an_export_holds_all_that_a_replay_needs(exported: Path) -> None:
    head, row = map(json.loads, exported.read_text().splitlines()[:2])

    assert (head["workflow"], head["id"]) == ("Greet", "ada")
    assert head["request"] == "ada"
    assert row["kind"] == "step"
    assert row["payload"] == "Hello ada"
    assert row["digest"]
