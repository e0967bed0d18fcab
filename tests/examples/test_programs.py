"""The examples, run as a reader would run them, small."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from engine import Client, Runner, Settings
from examples import documents, fulfil_demo, transfer
from examples.signup import Member, Signup, runner
from examples.signup_client import main as sign_up

ROOT = Path(__file__).parents[2]


@pytest.fixture
def shared_server(monkeypatch: pytest.MonkeyPatch, server_dsn: str) -> str:
    """The examples make their databases on the test server."""
    monkeypatch.setenv("OUTLAST_DSN", server_dsn)
    return server_dsn


@pytest.fixture
async def signups(monkeypatch: pytest.MonkeyPatch, dsn: str) -> AsyncIterator[Runner]:
    monkeypatch.setenv("OUTLAST_DSN", dsn)
    async with runner() as serving:
        yield serving


@pytest.mark.timeout(120)
async def test_the_demo_ends_every_order_once_although_a_runner_is_killed(
    shared_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = await fulfil_demo.main(orders=24)

    said = capsys.readouterr().out
    assert code == 0, said
    assert "24 orders ended: 22 fulfilled, 2 refused" in said
    assert "NOT TRUE" not in said


@pytest.mark.timeout(120)
async def test_transfers_are_applied_once_although_a_runner_is_killed(
    shared_server: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = await transfer.main(transfers=60, accounts=5)

    said = capsys.readouterr().out
    assert code == 0, said
    assert "Killed a runner" in said
    assert "0 transfers not applied exactly once" in said


async def test_words_are_counted_as_a_plain_program_counts_them(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "deep" / "lines.txt").write_text("one two\r\ntwo\x0cthree\u2028three three\n" * 150)
    (tmp_path / "prose.md").write_text("The end, isn't it? No: the END.", encoding="utf-8")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00one")

    found, _ = await documents.count(dsn, tmp_path)

    assert found == documents.plain(tmp_path)
    assert found["three"] == 450
    assert found["end"] == 2


async def test_the_document_pipeline_takes_a_step_for_each_page(dsn: str, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("word\n" * (documents.LINES * 3 + 1))

    found, steps = await documents.count(dsn, tmp_path)

    assert found == {"word": documents.LINES * 3 + 1}
    assert steps == 1 + 4


def test_the_documents_script_says_what_is_wrong_with_its_argument(tmp_path: Path) -> None:
    script = [sys.executable, "examples/documents.py", str(tmp_path / "nowhere")]

    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert "is not a folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_example_of_tests_passes_as_it_stands(server_dsn: str) -> None:
    """The fixtures are found by their entry point, once the project is installed with it."""
    found = any(each.value == "cli.pytest_plugin" for each in entry_points(group="pytest11"))
    plugin = [] if found else ["-p", "cli.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plugin, "examples/test_signup.py"],
        cwd=ROOT,
        env={**os.environ, "OUTLAST_TEST_DSN": server_dsn},
        capture_output=True,
        text=True,
        check=False,
    )

    assert "8 passed" in done.stdout, done.stdout + done.stderr


async def test_a_member_who_confirms_is_welcomed(
    signups: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await sign_up() == "member"

    assert "Welcome, Grace" in capsys.readouterr().out


async def test_the_application_finds_what_it_started_before(signups: Runner) -> None:
    assert [await sign_up(), await sign_up()] == ["member", "member"]


async def test_a_member_can_be_signed_up_by_one_process_and_joined_by_another(
    signups: Runner, dsn: str
) -> None:
    bob = Member(name="Bob", email="bob@example.org")
    async with Client(Settings(dsn=dsn)) as one, Client(Settings(dsn=dsn)) as other:
        started = await one.start(Signup, bob)
        join = asyncio.ensure_future(other.execution(Signup, bob.email).join())
        assert await started.resolve(Signup.confirmed, True)
        async with asyncio.timeout(20):
            assert await join == "member"
        assert await started.join(timeout=timedelta(seconds=20)) == "member"
