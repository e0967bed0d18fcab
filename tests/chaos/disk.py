"""A small disk of the test's own that can be full: a tmpfs whose size is cut to what is used."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SIZE = 8 << 30
"""Bytes, at most; only what is used takes memory."""


class Disk:
    """A directory; ``why_not`` says why it cannot be full, where it cannot."""

    def __init__(self, path: Path, why_not: str = "") -> None:
        self.path = path
        self.why_not = why_not

    def fill(self) -> None:
        """From now on nothing more can be written, but for a few pages."""
        # Blocks that were used meanwhile are refused; then it is full a little later.
        for _ in range(20):
            used = shutil.disk_usage(self.path).used
            if self._resize(used + 64 * 1024):
                return

    def free(self) -> None:
        assert self._resize(SIZE)

    def _resize(self, size: int) -> bool:
        command = ["mount", "-o", f"remount,size={size}", str(self.path)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@contextmanager
def small_disk() -> Iterator[Disk]:
    """A new one, which is gone afterwards as soon as the last process has let go of it; a plain
    directory where nobody may mount."""
    path = Path(tempfile.mkdtemp(prefix="outlast-project-"))
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE},mode=755", "outlast-test", str(path)]
    try:
        why_not = "mounting a tmpfs takes root"
        if os.geteuid() == 0:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            why_not = done.stderr.strip()
        path.chmod(0o755)
        yield Disk(path, why_not)
    finally:
        if not why_not:
            subprocess.run(["umount", "--lazy", str(path)], check=True)
        shutil.rmtree(path, ignore_errors=True)
