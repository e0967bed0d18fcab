"""What a run says: tables of ours beside the best rival, and of every engine.

``python -m bench.peers.report FILE`` prints them in Markdown. Without a file it fills the page
whose comment says from which, as ``bench.report`` does::

    <!-- peers: bench/results/peers-2026-11-28.jsonl -->
    <!-- end of peers -->

A ratio above 1 says that ours is so
many times better; it is taken within each round, so that what disturbs the machine in one round
disturbs both.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.report import PAGE, conditions, read
from bench.results import ROOT

MARKED = re.compile(r"(?ms)^(<!-- peers: (\S+) -->\n).*?^<!-- end of peers -->$")
OURS = "outlast"
PLAIN = ("PgQueuer", "Procrastinate")
Row = Mapping[str, Any]
Named = tuple[str, str]
"""An engine and its variant."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What is compared; less of it is better unless ``more`` is."""

    workload: str
    metric: str
    title: str
    more: bool = False


FIGURES = (
    Figure("W1", "throughput", "W1 one-step workflows, per s", more=True),
    Figure("W2", "throughput", "W2 steps, per s", more=True),
    Figure("W3", "latency, p50", "W3 start to result, p50, ms"),
    Figure("W3", "latency, p99", "W3 start to result, p99, ms"),
    Figure("W4", "one step", "W4 one sequential step, ms"),
    Figure("W5", "parent and children", "W5 parent and children, s"),
    Figure("W6", "latency, p50", "W6 event to result, p50, ms"),
    Figure("W6", "latency, p99", "W6 event to result, p99, ms"),
    Figure("W7", "lag, p50", "W7 sleepers, lag p50, s"),
    Figure("W7", "lag, max", "W7 sleepers, lag max, s"),
    Figure("W7", "until all have ended", "W7 from the first start to the last end, s"),
    Figure("W7", "memory while asleep", "W7 memory while asleep, MB"),
    Figure("W8", "processor", "W8 30 s idle, worker's processor s"),
    Figure("W8", "processor with server", "W8 the same, with a server of its own, s"),
    Figure("W8", "statements", "W8 idle, statements per s"),
)


@dataclass(frozen=True, slots=True)
class Spread:
    """The median of some values, with the least and the most."""

    middle: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        ordered = sorted(values)
        return cls(median(ordered), ordered[0], ordered[-1])

    def __str__(self) -> str:
        if shown(self.least) == shown(self.most):
            return shown(self.middle)
        return f"{shown(self.middle)} ({shown(self.least)} to {shown(self.most)})"


@dataclass(frozen=True, slots=True)
class Beside:
    """Ours and the best rival in one figure; without a ratio where one of them is 0 or less."""

    ours: Spread
    rival: Named
    rivals: Spread
    ratio: Spread | None


class Measured:
    """The figures of one run: of each engine's variant, one for each round."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self._values: dict[tuple[Named, str, str], dict[int, float]] = {}
        self._unfinished: dict[tuple[Named, str], list[str]] = {}
        self.engines: dict[Named, Row] = {}
        for row in rows:
            named = row.get("engine", ""), row["variant"]
            if row["metric"] == "engine":
                self.engines[named] = row
            elif row["metric"] == "not finished":
                said = "failed" if "failed" in row else f"not within {row['value']:g} s"
                self._unfinished[named, row["workload"]] = [said]
            elif "round" in row:
                key = named, row["workload"], row["metric"]
                self._values.setdefault(key, {})[row["round"]] = row["value"]

    def spread(self, named: Named, figure: Figure) -> Spread | None:
        found = self._of(named, figure)
        return Spread.of(found.values()) if found else None

    def cell(self, named: Named, figure: Figure) -> str:
        spread = self.spread(named, figure)
        said = [str(spread)] if spread else []
        return ", then ".join([*said, *self._unfinished.get((named, figure.workload), [])])

    def beside(self, ours: Named, rivals: Sequence[Named], figure: Figure) -> Beside | None:
        """Ours beside that rival whose median is the best; None where either has nothing."""
        own, spreads = self._of(ours, figure), {r: self.spread(r, figure) for r in rivals}
        found = {rival: spread for rival, spread in spreads.items() if spread}
        if not own or not found:
            return None
        best = max if figure.more else min
        rival = best(found, key=lambda each: found[each].middle)
        theirs = self._of(rival, figure)
        both = [(own[n], theirs[n]) for n in own if n in theirs]
        ratios = [advantage(*pair, more=figure.more) for pair in both if min(pair) > 0]
        ratio = Spread.of(ratios) if ratios and len(ratios) == len(both) else None
        return Beside(Spread.of(own.values()), rival, found[rival], ratio)

    def _of(self, named: Named, figure: Figure) -> dict[int, float]:
        return self._values.get((named, figure.workload, figure.metric), {})


def advantage(ours: float, rival: float, *, more: bool) -> float:
    """How many times better ours is."""
    return ours / rival if more else rival / ours


def shown(value: float) -> str:
    """Three digits that count."""
    if abs(value) >= 100:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def filled(page: str) -> str:
    """A page with its tables made anew."""
    return MARKED.sub(
        lambda found: f"{found[1]}{tables(read(ROOT / found[2]))}\n<!-- end of peers -->", page
    )


def tables(rows: Sequence[Row]) -> str:
    """All of them, in Markdown."""
    measured = Measured(rows)
    named = list(measured.engines)
    durable = [each for each in named if each[0] not in (OURS, *PLAIN)]
    plain = [each for each in named if each[0] in PLAIN]
    separate, inside = (OURS, "two processes"), (OURS, "in process")
    return "\n\n".join(
        [
            conditions(rows),
            f"{max(row.get('round', 0) for row in rows)} rounds, sizes times {_scale(rows):g}.",
            "Worker and driver in two processes, beside the best engine that keeps each step:",
            _beside(measured, separate, durable),
            "Both in one process, beside DBOS in one process:",
            _beside(measured, inside, [each for each in durable if each[1] == "in process"]),
            "Our workflows beside plain job queues, which keep no steps and no results:",
            _beside(measured, separate, plain),
            "Every engine, medians with the least and the most:",
            _all(measured, named, FIGURES[:6]),
            _all(measured, named, FIGURES[6:]),
            "What each ran with:",
            _settings(measured),
        ]
    )


def _scale(rows: Sequence[Row]) -> float:
    return next((row["scale"] for row in rows if "scale" in row), 1)


def _beside(measured: Measured, ours: Named, rivals: Sequence[Named]) -> str:
    lines = [
        (
            figure.title,
            str(found.ours),
            ", ".join(found.rival),
            str(found.rivals),
            str(found.ratio or ""),
        )
        for figure in FIGURES
        if (found := measured.beside(ours, rivals, figure))
    ]
    return _table(["", "outlast", "best rival", "it", "ours is better by"], lines)


def _all(measured: Measured, named: Sequence[Named], figures: Sequence[Figure]) -> str:
    lines = [
        [", ".join(each), *(measured.cell(each, figure) for figure in figures)] for each in named
    ]
    told = [line for line in lines if any(line[1:])]
    return _table(["", *(figure.title for figure in figures)], told)


def _settings(measured: Measured) -> str:
    lines = [
        (", ".join(each), row["versions"], row["note"], row.get("missing", ""))
        for each, row in measured.engines.items()
    ]
    return _table(["", "version", "settings", "not installed"], lines)


def _table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    ruled = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in ruled)


def main() -> None:
    if files := sys.argv[1:]:
        print(tables([row for file in files for row in read(Path(file))]))
    else:
        PAGE.write_text(filled(PAGE.read_text()))


if __name__ == "__main__":
    main()
