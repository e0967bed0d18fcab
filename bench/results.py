"""Measured figures: one JSON object a line in a file, and a table for people."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

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
    """The commit that is checked out, or ``unknown``."""
    command = ["git", "describe", "--always", "--dirty"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


@dataclass(slots=True, kw_only=True)
class Results:
    """Figures of one run of the benchmark, written as they come.

    Each line says where and under which load it was measured: figures of a machine that does
    something else at the time are worth little, and those of two machines cannot be compared.
    """

    path: Path
    postgres: str
    commit: str = field(default_factory=_checked_out)
    rows: list[dict[str, object]] = field(default_factory=list[dict[str, object]])

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
            "python": platform.python_version(),
            "postgres": self.postgres,
            "commit": self.commit,
        }
        self.rows.append(row)
        self.path.parent.mkdir(exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def show(self) -> None:
        table = Table(title=f"outlast, PostgreSQL {self.postgres}, {os.cpu_count()} CPUs, durable")
        for column in ("workload", "runner", "what"):
            table.add_column(column)
        table.add_column("value", justify="right")
        for column in ("unit", "more", "load"):
            table.add_column(column)
        shown = ("workload", "variant", "metric", "value", "unit")
        hidden = {*shown, "at", "cpus", "python", "postgres", "commit", "load"}
        for row in self.rows:
            more = ", ".join(f"{name} {value}" for name, value in row.items() if name not in hidden)
            table.add_row(*(str(row[name]) for name in shown), more, str(row["load"]))
        Console(width=None if Console().is_terminal else 120).print(table)
