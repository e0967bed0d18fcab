"""The model of ownership: its rules hold, and none of them is there for nothing."""

import importlib.util
import sys
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MODEL = Path(__file__).parents[2] / "docs" / "model"

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def ownership() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(MODEL), *sys.path])
        spec = importlib.util.spec_from_file_location("ownership", MODEL / "ownership.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, "ownership", module)
        spec.loader.exec_module(module)
        return module


def test_under_all_rules_every_state_keeps_the_guarantees(ownership: ModuleType) -> None:
    verdict = ownership.verdict()

    assert verdict.finding is None
    assert verdict.states > 60_000  # it did look


@pytest.mark.parametrize(
    ("rule", "what"),
    [
        ("pen_is_the_lock", "G1"),
        ("lock_before_epoch", "G1"),
        ("epoch_before_read", "G1"),
        ("fence_is_read", "G1"),
        ("fence_is_held", "G1"),
        ("journal_row_is_unique", "G6"),
        ("generations", "G1"),
        ("dead_take_nothing", "never finish"),
        ("dead_lose_their_sessions", "never finish"),
        ("dead_own_nothing", "never finish"),
    ],
)
def test_a_rule_that_is_left_out_is_missed(ownership: ModuleType, rule: str, what: str) -> None:
    finding = ownership.verdict(rule).finding

    assert finding is not None
    assert what in finding.what
    assert finding.trace


def test_no_rule_goes_by_a_runners_number(ownership: ModuleType) -> None:
    """So that of states that differ by numbers alone one has to be looked at."""
    model = ownership.Ownership(ownership.Rules()).model()
    todo, seen = [model.first], {model.alike(model.first)}
    for state in islice(todo, 3_000):  # which grows meanwhile
        kinds = {model.alike(following): following for _, following in model.steps(state)}
        todo += [kinds[each] for each in kinds.keys() - seen]
        seen |= kinds.keys()
        other = turned(state)
        assert model.alike(other) == model.alike(state)
        assert {model.alike(following) for _, following in model.steps(other)} == kinds.keys()
    assert len(seen) > 3_000


def turned(state: Any) -> Any:
    """The same with each runner's number one higher, and the last one's 0."""

    def higher(n: int) -> int:
        return n if n < 0 else n - n % 10 + (n % 10 + 1) % 3

    *others, last = state.runners
    numbers = {"lock": higher(state.lock), "owner": higher(state.owner)}
    return state._replace(runners=(last, *others), **numbers)


def test_every_rule_is_tried(ownership: ModuleType) -> None:
    assert set(ownership.FAULTS) == set(ownership.Rules.__dataclass_fields__)
