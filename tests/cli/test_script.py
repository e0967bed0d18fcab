"""The installed console script, from end to end: ``run`` in one process, the rest in others."""

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

from tests.cli.terminal import SCRIPT, do, ended, outlast, script
from tests.cli.watched import running
from tests.eventually import eventually


def test_an_order_from_start_to_result(project: Path, dsn: str) -> None:
    with running("run", "orders:app", dsn=dsn, cwd=project) as runner:
        runner.says("runner serves")
        start = ended(script("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn))
        resolve = ended(script("resolve", "o-1", "approved", "true", dsn=dsn))
        join = ended(script("join", "Fulfil/o-1", "--timeout", "20s", dsn=dsn))
        show = ended(script("show", "o-1", dsn=dsn))
        drained = runner.stopped()

    assert start.lines[0]["id"] == "Fulfil/o-1"
    assert resolve.code == 0
    assert (join.code, join.out, join.err) == (0, '"hold-1, paid 100"\n', "")
    assert [event["kind"] for event in show.lines[0]["history"]] == [
        "call",
        "step",
        "resolved",
        "attempt",
        "step",
    ]
    assert drained.code == 0
    assert "Traceback" not in runner.said + drained.err


async def test_sigterm_lets_a_running_step_end(project: Path, dsn: str) -> None:
    with running("run", "orders:app", dsn=dsn, cwd=project) as runner:
        runner.says("runner serves")
        await do("start", "Held", json.dumps(str(project)), "--key", "h-1", dsn=dsn)
        await eventually((project / "begun").exists)
        runner.process.send_signal(signal.SIGTERM)
        runner.says("runner drains")
        (project / "end").touch()
        drained = await asyncio.to_thread(ended, runner.process)

    assert drained.code == 0
    history = await do("history", "h-1", dsn=dsn)
    assert [line["payload"] for line in history.lines] == ["done"]


async def test_a_second_ctrl_c_cuts_the_draining_short(project: Path, dsn: str) -> None:
    with running("run", "orders:app", dsn=dsn, cwd=project) as runner:
        runner.says("runner serves")
        await do("start", "Held", json.dumps(str(project)), "--key", "h-1", dsn=dsn)
        await eventually((project / "begun").exists)
        runner.process.send_signal(signal.SIGINT)
        runner.says("runner drains")
        stopped = await asyncio.to_thread(runner.stopped, signal.SIGINT)

    assert stopped.code == 130
    assert "cut short by a second signal" in stopped.err
    assert "Traceback" not in stopped.err


def test_an_app_that_cannot_run_says_why_and_ends(project: Path, dsn: str) -> None:
    (project / "broken.py").write_text("import orders\n1 / 0\n")

    started = [script("run", app, dsn=dsn, cwd=project) for app in ("orders:ap", "broken:app")]
    missing, broken = map(ended, started)

    assert (missing.code, broken.code) == (2, 1)
    assert missing.err.startswith("outlast: module 'orders' has no 'ap': did you mean app?")
    assert "ZeroDivisionError: division by zero" in broken.err
    assert len(broken.err.splitlines()) == 1


def test_run_needs_a_migrated_database(project: Path, empty_dsn: str) -> None:
    run = ended(script("run", "orders:app", dsn=empty_dsn, cwd=project))

    assert run.code == 1
    assert "schema 'engine' is not there yet: run 'outlast migrate'" in run.err
    assert "Traceback" not in run.err


def test_run_serves_the_groups_it_is_given(project: Path, dsn: str) -> None:
    with running("run", "orders:app", "--groups", "a, b", dsn=dsn, cwd=project) as runner:
        runner.says("runner serves")
        (row,) = outlast("runners", dsn=dsn).lines
        start = outlast("start", "Slow", "0", "--key", "s-1", dsn=dsn)

    assert row["groups"] == ["a", "b"]
    assert "no live runner serves Slow" in start.err  # whose group is neither


def test_without_a_command_the_help_is_all_there_is() -> None:
    assert "see:" not in outlast().err


def test_a_terminal_gets_a_table_and_no_color_is_heeded(dsn: str) -> None:
    def seen(**variables: str) -> str:
        main, side = pty.openpty()
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "90", **variables}
        done = subprocess.run(
            [SCRIPT, "doctor", "--dsn", dsn], stdout=side, env=environment, check=False
        )
        os.close(side)
        text = b""
        try:
            while chunk := os.read(main, 65536):
                text += chunk
        except OSError:  # the other side is closed and all of it is read
            pass
        os.close(main)
        assert done.returncode in {0, 1}
        return text.decode()

    colored, plain = seen(), seen(NO_COLOR="1")

    assert "FINDING" in colored
    assert "\x1b[32m" in colored
    assert "\x1b[32m" not in plain


def test_a_reader_that_has_enough_gets_no_complaint(dsn: str) -> None:
    process = script("migrate", "--sql", dsn=dsn)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()

    process.wait(30)

    assert process.stderr.read() == ""
    process.stderr.close()


def test_the_help_is_quick_because_the_engine_is_not_imported_for_it() -> None:
    program = (
        "import sys; from cli.app import run; run(['--help']); "
        "sys.exit([name for name in sys.modules if name.partition('.')[0] in "
        "('engine', 'asyncpg', 'sqlalchemy', 'alembic', 'pydantic_settings')] or 0)"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stderr) == (0, "")
