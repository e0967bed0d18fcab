"""The operating-system user that the embedded server runs as, since PostgreSQL refuses to be root.

Never creates a user, and changes the owner of nothing but what was created here.
"""

import hashlib
import os
import pwd
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from engine.core.errors import ConfigurationError
from engine.embedded.keeper import environment

UNPRIVILEGED = ("postgres", "nobody")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user and group; ``switched`` when we are root and have to become it."""

    uid: int
    gid: int
    switched: bool

    @classmethod
    def for_project(cls, project: Path) -> Self:
        """Ourselves, or as root the project's owner, else an unprivileged user that exists."""
        if os.geteuid() != 0:
            return cls(uid=os.geteuid(), gid=os.getegid(), switched=False)
        owner = project.stat().st_uid
        for user in (owner, *UNPRIVILEGED):
            with suppress(KeyError):
                entry = pwd.getpwuid(user) if isinstance(user, int) else pwd.getpwnam(user)
                if entry.pw_uid != 0:
                    return cls(uid=entry.pw_uid, gid=entry.pw_gid, switched=True)
        raise ConfigurationError(
            "PostgreSQL refuses to run as root and there is no user 'postgres' or 'nobody' to run "
            "it as: run as another user, or set OUTLAST_DSN to a server of your own"
        )

    def run(self, command: Sequence[str | Path]) -> subprocess.CompletedProcess[str]:
        """Run a command as this user and wait for it."""
        return subprocess.run(
            [str(word) for word in command],
            cwd="/",
            env=environment(os.environ),
            capture_output=True,
            text=True,
            check=False,
            user=self.uid if self.switched else None,
            group=self.gid if self.switched else None,
            extra_groups=[] if self.switched else None,
        )

    def reaches(self, path: Path) -> bool:
        """Whether this user can read and enter, or execute, the path: asked of the kernel."""
        return (
            self.run(["/bin/sh", "-c", 'test -r "$1" && test -x "$1"', "sh", path]).returncode == 0
        )

    def directory(self, project: Path) -> Path:
        """A directory of this user's own for the project, always the same one."""
        digest = hashlib.sha256(os.fsencode(project)).hexdigest()[:12]
        temporary = Path(tempfile.gettempdir()) / f"outlast-{self.uid}-{digest}"
        for candidate in (project / ".outlast", temporary):
            with suppress(OSError):
                if self.reaches(candidate.parent):
                    self.create(candidate)
                if candidate.lstat().st_uid == self.uid and self.reaches(candidate):
                    return candidate
        raise ConfigurationError(
            f"no place for the embedded server's data: neither {project / '.outlast'} nor "
            f"{temporary} can be used by user {self.uid}; make one of them writable, or set "
            "OUTLAST_DSN to a server of your own"
        )

    def create(self, directory: Path) -> None:
        """Create a private directory of this user's unless it is there; never seen half-made."""
        if directory.exists():
            return
        draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
        os.chown(draft, self.uid, self.gid)
        try:
            draft.rename(directory)
        except OSError:  # somebody else was first
            draft.rmdir()

    def open(self, path: Path) -> int:
        """Open a file of this user's for locking, creating it if need be."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        if self.switched:
            os.fchown(descriptor, self.uid, self.gid)
        return descriptor
