"""Measured figures: one JSON object a line in a file, and a line for whoever watches."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def percentile(values: Sequence[float], share: float) -> float:
    """Interpolated between the two nearest."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def milliseconds(seconds: Sequence[float]) -> dict[str, float]:
    """The usual percentiles of some durations."""
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {name: round(percentile(seconds, share) * 1000, 2) for name, share in shares.items()}


def _checked_out() -> str:
    """The commit that is checked out, or ``unknown``; ``-dirty`` if more than results is new."""
    commit = _git("describe", "--always")
    changed = commit and _git("status", "--porcelain", "--", ".", ":!bench/results")
    return f"{commit}-dirty" if changed else commit or "unknown"


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def _processor() -> str:
    """What it calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@dataclass(slots=True, kw_only=True)
class Results:
    """Figures of one run of the benchmark, written as they come.

    Each line says where and under which load it was measured: figures of a machine that does
    something else at the time are worth little, and those of two machines cannot be compared.
    """

    path: Path
    postgres: str
    commit: str = field(default_factory=_checked_out)
    processor: str = field(default_factory=_processor)

    def add(
        self, workload: str, variant: str, metric: str, value: float, unit: str, **more: object
    ) -> None:
        row: dict[str, object] = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "workload": workload,
            "variant": variant,
            "metric": metric,
            "value": round(value, 3),
            "unit": unit,
            **more,
            "load": round(os.getloadavg()[0], 1),
            "cpus": os.cpu_count(),
            "processor": self.processor,
            "python": platform.python_version(),
            "postgres": self.postgres,
            "commit": self.commit,
        }
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = ", ".join(f"{name} {value}" for name, value in more.items())
        print(f"{workload} {variant}: {metric} {value:.2f} {unit} ({shown})", flush=True)

    def add_durations(
        self, workload: str, variant: str, metric: str, seconds: Sequence[float], **more: object
    ) -> None:
        """The median of some durations, with their other percentiles."""
        figures = milliseconds(seconds)
        median = figures.pop("p50")
        self.add(
            workload, variant, f"{metric}, p50", median, "ms", n=len(seconds), **figures, **more
        )
