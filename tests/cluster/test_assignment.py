"""Shards are shared out evenly, alike everywhere, and few of them move when runners come and go."""

import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cluster.assignment import Candidate, assign
from engine.core.ids import RunnerId, ShardId

SHARDS = [ShardId("default", number) for number in range(1, 301)]


def runners_of(seed: int, count: int, weights: tuple[float, ...] = (1.0,)) -> list[Candidate]:
    draw = random.Random(seed)
    return [
        Candidate(id=RunnerId(UUID(int=draw.getrandbits(128))), weight=draw.choice(weights))
        for _ in range(count)
    ]


def moves(before: Mapping[ShardId, RunnerId], after: Mapping[ShardId, RunnerId]) -> int:
    return sum(before[shard] != after[shard] for shard in before)


def test_300_shards_over_3_equal_runners_come_out_at_100_each() -> None:
    owners = assign(SHARDS, runners_of(1, 3))

    assert sorted(Counter(owners.values()).values()) == [100, 100, 100]


@given(count=st.integers(1, 12), shards=st.integers(0, 80), seed=st.integers(0, 1000))
def test_equal_runners_get_shares_within_one_of_each_other(
    count: int, shards: int, seed: int
) -> None:
    runners = runners_of(seed, count)

    owners = assign(SHARDS[:shards], runners)

    counts = Counter(owners.values())
    shares = [counts[runner.id] for runner in runners]
    assert sum(shares) == shards == len(owners)
    assert max(shares) - min(shares) <= 1


@given(
    weights=st.lists(st.floats(0.1, 10), min_size=1, max_size=8),
    shards=st.integers(0, 80),
    seed=st.integers(0, 1000),
)
def test_weighted_runners_get_their_share_to_within_one(
    weights: list[float], shards: int, seed: int
) -> None:
    equals = runners_of(seed, len(weights))
    runners = [Candidate(id=each.id, weight=w) for each, w in zip(equals, weights, strict=True)]

    counts = Counter(assign(SHARDS[:shards], runners).values())

    for runner in runners:
        exact = shards * runner.weight / sum(weights)
        assert exact - 1.000001 < counts[runner.id] < exact + 1.000001


@given(seed=st.integers(0, 1000), shuffle=st.randoms(use_true_random=False))
def test_the_order_of_shards_and_runners_does_not_matter(seed: int, shuffle: random.Random) -> None:
    runners = runners_of(seed, 5, (1.0, 2.0))
    shards = SHARDS[:50]
    expected = assign(shards, runners)

    shuffle.shuffle(runners)
    shuffle.shuffle(shards)

    assert assign(shards, runners) == expected


@pytest.mark.parametrize(
    ("count", "weights", "limit"),
    [
        (2, (1.0,), 1.15),
        (3, (1.0,), 1.25),
        (5, (1.0,), 1.35),
        (10, (1.0,), 1.7),
        (3, (1.0, 2.0), 1.35),
        (10, (0.5, 1.0, 2.0), 1.9),
    ],
)
def test_a_runner_that_joins_or_leaves_moves_little_more_than_its_share(
    count: int, weights: tuple[float, ...], limit: float
) -> None:
    for seed in range(10):
        runners = runners_of(seed, count + 1, weights)
        comer = runners[-1]
        with_it, without_it = assign(SHARDS, runners), assign(SHARDS, runners[:-1])
        share = Counter(with_it.values())[comer.id]

        assert share <= moves(without_it, with_it) <= share * limit


def test_a_runner_without_weight_gets_nothing() -> None:
    idle, busy = runners_of(3, 2)
    idle = Candidate(id=idle.id, weight=0)

    assert set(assign(SHARDS, [idle, busy]).values()) == {busy.id}
    assert assign(SHARDS, [idle]) == {}
    assert assign(SHARDS, []) == {}


def test_groups_are_shared_out_independently() -> None:
    runners = runners_of(4, 3)
    other = [ShardId("other", number) for number in range(1, 301)]

    ours, theirs = assign(SHARDS, runners), assign(other, runners)

    alike = sum(ours[a] == theirs[b] for a, b in zip(SHARDS, other, strict=True))
    assert 60 < alike < 140


@pytest.mark.parametrize(
    ("weights", "pinned"),
    [
        ((1.0,), "2202210111000212201011012112212100100022"),
        ((1.0, 2.5), "1202211111000212201011112111111111100022"),
    ],
)
def test_the_assignment_is_the_same_in_every_process_and_version(
    weights: tuple[float, ...], pinned: str
) -> None:
    runners = runners_of(9, 3, weights)
    order = [runner.id for runner in runners]

    owners = assign(SHARDS[:40], runners)

    assert "".join(str(order.index(owners[shard])) for shard in SHARDS[:40]) == pinned


def test_another_process_with_another_hash_seed_assigns_alike() -> None:
    program = (
        "from tests.cluster.test_assignment import SHARDS, assign, runners_of\n"
        "owners = assign(SHARDS, runners_of(6, 4))\n"
        "print(' '.join(str(owners[shard]) for shard in SHARDS))\n"
    )
    ours = assign(SHARDS, runners_of(6, 4))

    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=True,
    )

    assert result.stdout.split() == [str(ours[shard]) for shard in SHARDS]
