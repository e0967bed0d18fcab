"""What processes of this machine use, from /proc: nothing is known where there is none."""

import os
from collections.abc import Iterable
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """What a process has used; 0 if there is none."""
    return sum(_times(Path(f"/proc/{pid}"))[:2])


def family_seconds(pid: int | None) -> float:
    """What a process and all its children have used, those that have ended among them."""
    if pid is None:
        return 0.0
    children = (path for path in _processes() if _parent(path) == pid)
    return sum(_times(Path(f"/proc/{pid}"))) + sum(sum(_times(path)) for path in children)


def resident_mb(pid: int) -> float:
    """The memory of a process in MiB; 0 if there is none."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def _processes() -> Iterable[Path]:
    return (path for path in Path("/proc").iterdir() if path.name.isdigit())


def _words(process: Path) -> list[str]:
    try:
        return (process / "stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return []


def _parent(process: Path) -> int:
    words = _words(process)
    return int(words[1]) if words else 0


def _times(process: Path) -> list[float]:
    """User and system seconds of a process, then those of its children that have ended."""
    return [int(word) / TICK for word in _words(process)[11:15]]


def idle_seconds() -> float:
    """Of all processors together, without work, since the machine started."""
    try:
        words = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return 0.0
    return (int(words[4]) + int(words[5])) / TICK
