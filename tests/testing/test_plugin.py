"""The pytest plugin, in test runs of its own."""

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from textwrap import dedent

import pytest

CHECKOUT = Path(__file__).parents[2]
MODULE = """
import asyncio
import pytest
from engine import Workflow

class Double(Workflow[int, int]):
    async def execute(self, request: int) -> int:
        return request * 2
"""
SYNC = """
@pytest.mark.parametrize("n", range(6))
def test_double(outlast_cluster, n):
    async def main():
        async with outlast_cluster(Double()) as cluster:
            assert await cluster.client.execute(Double, n) == 2 * n
    asyncio.run(main())
"""
ASYNC = """
@pytest.mark.parametrize("n", range(6))
async def test_double(outlast_cluster, n):
    async with outlast_cluster(Double()) as cluster:
        assert await cluster.client.execute(Double, n) == 2 * n
"""
DATABASES = """
@pytest.mark.parametrize("n", range(4))
def test_each_has_a_database_of_its_own(outlast_cluster, outlast_dsn, n):
    async def main():
        async with outlast_cluster(Double(), dsn=outlast_dsn) as cluster:
            assert [each async for each in cluster.client.executions()] == []
            assert await cluster.client.execute(Double, 1) == 2
    asyncio.run(main())
"""
UNUSED = """
import sys

def test_nothing_of_the_engine_is_loaded():
    assert "cli.pytest_plugin" in sys.modules
    assert not [name for name in sys.modules if name.partition(".")[0] == "engine"]
"""


def run(folder: Path, source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """pytest as in a project of a user: the plugin is found by its entry point if that is there."""
    (folder / "test_it.py").write_text(dedent(source))
    installed = any(each.value == "cli.pytest_plugin" for each in entry_points(group="pytest11"))
    plugin = [] if installed else ["-p", "cli.pytest_plugin"]
    warnings = ["-W", "error", "-W", "ignore::pytest.PytestDeprecationWarning"]
    command = [sys.executable, "-m", "pytest", "-q", *warnings, *plugin, *options, "test_it.py"]
    environment = {"PYTHONPATH": str(CHECKOUT), "PATH": ""}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (SYNC, ["-p", "no:asyncio", "-p", "no:anyio"]),
        (SYNC, []),
        (ASYNC, ["--asyncio-mode=auto"]),
        (ASYNC, ["--asyncio-mode=auto", "-n", "2"]),
    ],
    ids=["without an async plugin", "beside one", "with pytest-asyncio", "in parallel"],
)
def test_a_cluster_needs_no_set_up(source: str, options: list[str], tmp_path: Path) -> None:
    done = run(tmp_path, MODULE + source, *options)

    assert "6 passed" in done.stdout, done.stdout + done.stderr


def test_parallel_workers_get_databases_of_their_own(server_dsn: str, tmp_path: Path) -> None:
    names = f"import os\nos.environ['OUTLAST_TEST_DSN'] = {server_dsn!r}\n"

    done = run(tmp_path, names + MODULE + DATABASES, "-n", "2")

    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_a_run_that_does_not_use_it_does_not_load_the_engine(tmp_path: Path) -> None:
    done = run(tmp_path, UNUSED, "-p", "no:randomly")

    assert "1 passed" in done.stdout, done.stdout + done.stderr
