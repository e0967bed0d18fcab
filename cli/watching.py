"""Notice that a project's Python files have changed, by looking at them now and then."""

import asyncio
import os
from pathlib import Path

from engine.core.clock import monotonic

_PAUSE = 0.3
_SHARE = 10
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages"})

Snapshot = dict[str, tuple[int, int]]


class Watcher:
    """The files below ``root`` as they were when it was made, or when a change was last seen."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen = snapshot(root)

    async def changed(self) -> list[str]:
        """Wait for a change; the files, relative to the root, that came, went or are other now."""
        while True:
            began = monotonic()
            found = await asyncio.to_thread(snapshot, self._root)
            before, self._seen = self._seen, found
            other = {name for name, _ in before.items() ^ found.items()}
            if other:
                return sorted(str(Path(name).relative_to(self._root)) for name in other)
            # A large project is looked at less often.
            await asyncio.sleep(max(_PAUSE, _SHARE * (monotonic() - began)))


def snapshot(root: Path) -> Snapshot:
    """Every .py file with its time and size; hidden folders and virtual environments left out."""
    found: Snapshot = {}
    folders = [str(root)]
    while folders:
        try:
            entries = list(os.scandir(folders.pop()))
        except OSError:
            continue
        if any(entry.name == "pyvenv.cfg" for entry in entries):
            continue
        for entry in entries:
            try:
                if entry.name.endswith(".py"):
                    status = entry.stat()
                    found[entry.path] = status.st_mtime_ns, status.st_size
                elif entry.is_dir(follow_symlinks=False) and not _skipped(entry.name):
                    folders.append(entry.path)
            except OSError:
                continue
    return found


def _skipped(name: str) -> bool:
    return name.startswith(".") or name in _SKIPPED
