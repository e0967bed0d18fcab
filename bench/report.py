"""Tables from measured figures: ``python -m bench.report [FILE ...]``.

With files, it prints all that is in them. Without, it fills ``docs/performance.md``, whose comments
say from which file, until another is named, where, and with which columns::

    <!-- results: bench/results/2026-11-27.jsonl -->
    <!-- table: W1 W2 | statements commits -->
    <!-- end -->

Each figure is the median of its repetitions, with the least and the most.
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, cast

from bench.results import ROOT

PAGE = ROOT / "docs/performance.md"
RESULTS = re.compile(r"^<!-- results: (\S+) -->$", re.MULTILINE)
MARKED = re.compile(r"(?ms)^(<!-- (conditions|table: [^|\n]+\|[^\n]*) -->\n).*?^<!-- end -->$")
TITLES = {
    "n": "number",
    "wal_bytes": "WAL bytes",
    "driver_ms": "driver, CPU ms",
    "runner_ms": "runner, CPU ms",
    "postgres_ms": "PostgreSQL, CPU ms",
    "p95": "p95, ms",
    "p99": "p99, ms",
    "max": "most, ms",
    "took_ms": "takes, ms",
    "in_place": "updates in place",
    "scans": "reads a workflow",
    "dead_rows": "dead rows",
    "table_mb": "table, MiB",
    "index_mb": "indexes, MiB",
    "memory_mb": "memory, MiB",
    "cpu_runner_s": "runner, CPU s",
    "cpu_postgres_s": "PostgreSQL, CPU s",
    "idle_cores": "idle cores",
    "rate_share": "share of the rate when empty, or before",
    "cpu_share": "share of the CPU time",
    "cpu_ms": "all CPU ms",
    "settled": "once settled",
    "anew": "begun anew",
}
"""Of columns whose field's name does not do."""
Row = Mapping[str, Any]
SAME = ("workload", "variant", "metric", "unit")


def read(path: Path) -> list[Row]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def filled(page: str) -> str:
    """A page with its tables made anew, each of the file that was named last before it."""
    named = [(found.start(), read(ROOT / found[1])) for found in RESULTS.finditer(page)]

    def replaced(found: re.Match[str]) -> str:
        rows = next(rows for at, rows in reversed(named) if at < found.start())
        what, _, columns = found[2].removeprefix("table: ").partition("|")
        made = conditions(rows) if what == "conditions" else table(rows, what.split(), columns)
        return f"{found[1]}{made}\n<!-- end -->"

    return MARKED.sub(replaced, page)


def conditions(rows: Sequence[Row]) -> str:
    """The machine, the versions, and what else it did."""
    commits = [row for row in rows if row["metric"] == "one-row commit, p50"]
    loads = [row["load"] for row in rows]
    times = sorted(str(row["at"])[:16].replace("T", " ") for row in rows)
    lines = {
        "Processors": f"{rows[-1]['cpus']} x {rows[-1]['processor']}",
        "PostgreSQL": _all(rows, "postgres"),
        "Python": _all(rows, "python"),
        "Measured": f"{times[0]} to {times[-1]} UTC",
        "Of commit": _all(rows, "commit"),
        "Load average": f"{min(loads)} to {max(loads)}",
        "A commit of one row, median": _amounts([row["value"] for row in commits], "ms"),
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {lines[key]} |" for key in lines)])


def table(rows: Sequence[Row], workloads: Iterable[str], columns: str) -> str:
    """One line per workload, place and figure, in the order of the workloads."""
    fields = columns.split()
    groups: dict[tuple[str, ...], list[Row]] = {}
    for workload in workloads:
        for row in rows:
            if row["workload"] == workload:
                groups.setdefault(tuple(str(row[name]) for name in SAME), []).append(row)
    titles = ["", "where", "what", "", *(TITLES.get(name, name) for name in fields)]
    lines = [titles, ["---"] * 3 + ["---:"] * (len(titles) - 3)]
    for (workload, variant, metric, unit), repeated in groups.items():
        value = _amounts([row["value"] for row in repeated], unit)
        more = (_cell(name, [row.get(name) for row in repeated]) for name in fields)
        lines.append([workload, variant, metric, value, *more])
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _cell(name: str, values: Sequence[Any]) -> str:
    if all(isinstance(value, int | float) for value in values):
        return _number(max(values) if name == "max" else median(values))
    if isinstance(values[-1], dict):
        parts = cast("dict[str, float]", values[-1])
        return ", ".join(f"{name} {_number(value)}" for name, value in parts.items())
    return "" if values[-1] is None else str(values[-1])


def _amounts(values: Sequence[float], unit: str) -> str:
    spread = f" ({_number(min(values))} to {_number(max(values))})" if len(values) > 1 else ""
    return f"{_number(median(values))} {unit}{spread}"


def _number(value: float) -> str:
    """With about three digits."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return (
        f"{value:.1f}"
        if abs(value) >= 10
        else f"{value:.2f}"
        if abs(value) >= 0.1
        else f"{value:.3f}"
    )


def _all(rows: Sequence[Row], field: str) -> str:
    return ", ".join(dict.fromkeys(str(row[field]) for row in rows))


def main() -> None:
    if files := sys.argv[1:]:
        rows = [row for file in files for row in read(Path(file))]
        workloads = dict.fromkeys(str(row["workload"]) for row in rows)
        print(conditions(rows), end="\n\n")
        everything = "p99 statements commits wal_bytes driver_ms runner_ms postgres_ms load"
        print(table(rows, workloads, everything))
        return
    PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main()
