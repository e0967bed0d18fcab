"""``outlast dev`` gives a project its database, runs the app, and ends without leaving anything."""

import json
import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cli.terminal import do, ended, script
from tests.cli.watched import running
from tests.eventually import eventually

CLOCK = """

class Late(Workflow[str, float]):
    async def execute(self, request: str) -> float:
        import time

        return time.time()
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A project that the embedded server's user can go to as well."""
    with tempfile.TemporaryDirectory(prefix="outlast-project-", ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o755)
        yield Path(path)


def stopped(dsn: str) -> bool:
    address = urlsplit(dsn)
    try:
        socket.create_connection((address.hostname, address.port), timeout=1).close()
    except OSError:
        return True
    return False


async def test_dev_starts_a_migrated_database_and_stops_it(folder: Path) -> None:
    with running("dev", cwd=folder) as dev:
        announced = json.loads(dev.prints())
        dsn = announced["dsn"]
        migrated = await do("migrate", "--check", dsn=dsn)
        end = dev.stopped(signal.SIGINT)

    assert (announced["embedded"], announced["app"]) == (True, None)
    assert migrated.code == 0
    assert (end.code, end.err) == (0, "")
    await eventually(lambda: stopped(dsn))


async def test_dev_runs_the_app_again_when_its_code_changes(project: Path, empty_dsn: str) -> None:
    code = project / "orders.py"
    whole = code.read_text()
    with running("dev", "orders:app", "--table", dsn=empty_dsn, cwd=project) as dev:
        dev.says("runner serves")
        code.write_text("x = (\n")
        dev.says("orders.py changed: starting again")
        dev.says("SyntaxError: '(' was never closed")
        dev.says("it starts again when its code changes")
        dev.said = ""
        code.write_text(whole + CLOCK)
        dev.says("OUT101 time.time() reads the system's clock")
        dev.says("runner serves")
        end = dev.stopped(signal.SIGTERM)

    assert end.code == 0
    assert "Traceback" not in end.err
    assert "orders:app, restarted when a .py file" in end.out.replace("\n", "")
    rows = (await do("runners", "--all", dsn=empty_dsn)).lines
    assert [row["state"] for row in rows] == ["ended", "ended"]


async def test_dev_starts_an_app_again_that_was_killed(project: Path, dsn: str) -> None:
    with running("dev", "orders:app", dsn=dsn, cwd=project) as dev:
        dev.says("runner serves")
        (runner,) = (await do("runners", dsn=dsn)).lines
        dev.said = ""
        os.kill(runner["pid"], signal.SIGKILL)
        dev.says("the app was killed by SIGKILL: starting again")
        dev.says("runner serves")
        end = dev.stopped(signal.SIGTERM)

    assert end.code == 0


async def test_the_app_ends_with_a_dev_that_was_killed(project: Path, dsn: str) -> None:
    with running("dev", "orders:app", dsn=dsn, cwd=project) as dev:
        dev.says("runner serves")
        dev.process.kill()

        async def gone() -> bool:
            rows = (await do("runners", "--all", dsn=dsn)).lines
            return [row["state"] for row in rows] == ["ended"]

        await eventually(gone)


def test_an_app_that_is_not_there_ends_dev(project: Path, dsn: str) -> None:
    end = ended(script("dev", "nope:app", dsn=dsn, cwd=project))

    assert end.code == 2
    assert "there is no module 'nope'" in end.err
    assert "Traceback" not in end.err


def test_a_dsn_that_leads_nowhere_may_be_left_out(project: Path) -> None:
    dev = ended(script("dev", dsn="postgresql://nobody@localhost:1/nowhere", cwd=project))

    assert (dev.code, dev.out) == (7, "")
    assert "without --dsn and OUTLAST_DSN, 'outlast dev' brings a PostgreSQL of its own" in dev.err
