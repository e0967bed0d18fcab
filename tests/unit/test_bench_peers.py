"""How ours is set beside the rivals: what is better, by how much, and beside which."""

import pytest

from bench.peers.report import (
    MARKED,
    Beside,
    Figure,
    Measured,
    Spread,
    advantage,
    filled,
    shown,
    tables,
)
from bench.report import PAGE

OURS = ("outlast", "two processes")
FAST, SLOW = ("DBOS", "queue tight"), ("Absurd", "default")
RATE = Figure("W1", "throughput", "W1", more=True)
LATENCY = Figure("W3", "latency, p50", "W3")


def row(named: tuple[str, str], figure: Figure, number: int, value: float) -> dict[str, object]:
    return {
        "engine": named[0], "variant": named[1], "workload": figure.workload,
        "metric": figure.metric, "round": number, "value": value,
    }  # fmt: skip


def rows(figure: Figure, **values: list[float]) -> list[dict[str, object]]:
    named = {"ours": OURS, "fast": FAST, "slow": SLOW}
    return [
        row(named[name], figure, number, value)
        for name, found in values.items()
        for number, value in enumerate(found, 1)
    ]


def beside(figure: Figure, **values: list[float]) -> Beside | None:
    return Measured(rows(figure, **values)).beside(OURS, [SLOW, FAST], figure)


def test_more_of_a_rate_and_less_of_a_time_are_better() -> None:
    assert advantage(600, 200, more=True) == 3
    assert advantage(2, 6, more=False) == 3


def test_the_best_rival_of_a_rate_has_the_highest_median() -> None:
    found = beside(RATE, ours=[600, 600, 600], slow=[1, 1, 900], fast=[200, 300, 200])

    assert found is not None
    assert found.rival == FAST
    assert found.ratio == Spread(3, 2, 3)


def test_the_best_rival_of_a_time_has_the_lowest_median() -> None:
    found = beside(LATENCY, ours=[2, 2, 2], slow=[30, 1, 30], fast=[4, 8, 5])

    assert found is not None
    assert found.rival == FAST
    assert found.ratio == Spread(2.5, 2, 4)


def test_a_ratio_is_taken_within_each_round() -> None:
    found = beside(RATE, ours=[100, 400, 1000], fast=[50, 200, 500])

    assert found is not None
    assert found.ratio == Spread(2, 2, 2)


def test_a_round_that_only_one_of_them_has_gives_no_ratio() -> None:
    found = beside(RATE, ours=[100, 100, 300], fast=[50, 50])

    assert found is not None
    assert found.ours == Spread(100, 100, 300)
    assert found.ratio == Spread(2, 2, 2)


@pytest.mark.parametrize("nothing", [0.0, -1.5])
def test_there_is_no_ratio_to_nothing(nothing: float) -> None:
    found = beside(LATENCY, ours=[nothing, 1], fast=[1, 1])

    assert found is not None
    assert found.ratio is None


def test_without_a_figure_of_both_nothing_is_beside() -> None:
    assert beside(RATE, ours=[1]) is None
    assert beside(RATE, fast=[1]) is None


def test_what_was_not_finished_or_not_installed_is_told() -> None:
    where = {
        "at": "2026-11-27T07:36:00", "load": 1.0, "cpus": 2, "processor": "a", "python": "3.11",
        "postgres": "18", "commit": "c",
    }  # fmt: skip
    told: list[dict[str, object]] = [
        {"engine": name, "variant": variant, "workload": "", "metric": "engine", "value": 0,
         "versions": "1.0", "note": "as it comes"}
        for name, variant in (OURS, FAST, SLOW)
    ]  # fmt: skip
    told[2]["missing"] = "pip: no such package"
    late = {**row(FAST, RATE, 1, 90), "metric": "not finished"}
    lost = {**row(FAST, LATENCY, 1, 0), "metric": "not finished", "failed": "a word"}

    commit = {"workload": "", "variant": "", "metric": "one-row commit, p50", "value": 0.2}
    run = [commit, *told, late, lost, *rows(RATE, ours=[1])]
    table = tables([{**where, **row} for row in run])

    assert "not within 90 s" in table
    assert "failed" in table
    assert "pip: no such package" in table


def test_figures_are_shown_with_the_digits_that_count() -> None:
    assert [shown(value) for value in (0.04321, 4.5678, 12345.6)] == ["0.0432", "4.57", "12,300"]
    assert str(Spread.of([3, 1, 2])) == "2 (1 to 3)"


def test_the_page_has_the_tables_of_the_results_it_names() -> None:
    page = PAGE.read_text()

    assert MARKED.search(page)
    assert filled(page) == page, "run python -m bench.peers.report"
