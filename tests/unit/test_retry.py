"""Which failures are tried again, and after how long."""

import asyncio
import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.errors import ConfigurationError
from engine.core.retry import RetryPolicy, again_in


def seconds(policy: RetryPolicy, attempt: int, seed: int = 1) -> float:
    return policy.delay(attempt, random.Random(seed)).total_seconds()


def test_delays_grow_by_the_factor_up_to_the_maximum() -> None:
    policy = RetryPolicy(
        initial=timedelta(seconds=1), factor=3, maximum=timedelta(seconds=20), jitter=0
    )

    assert [seconds(policy, attempt) for attempt in range(1, 6)] == [1, 3, 9, 20, 20]


def test_a_gentle_factor_reaches_the_maximum_too() -> None:
    policy = RetryPolicy(
        initial=timedelta(seconds=1), factor=1.01, maximum=timedelta(seconds=60), jitter=0
    )

    assert seconds(policy, 1_000) == 60


@pytest.mark.parametrize("attempt", [2, 1_000, 10**9])
def test_a_delay_is_bounded_however_often_it_failed(attempt: int) -> None:
    policy = RetryPolicy(attempts=0, factor=1e300, maximum=timedelta(minutes=1), jitter=0)

    assert seconds(policy, attempt) == 60


def test_without_an_initial_delay_there_is_none() -> None:
    policy = RetryPolicy(attempts=0, initial=timedelta(0))

    assert [seconds(policy, attempt) for attempt in (1, 2, 10**6)] == [0, 0, 0]


@given(attempt=st.integers(1, 10_000), seed=st.integers(), jitter=st.floats(0, 1))
def test_jitter_only_shortens_and_at_most_by_its_share(
    attempt: int, seed: int, jitter: float
) -> None:
    policy, exact = RetryPolicy(jitter=jitter), RetryPolicy(jitter=0)

    delay, longest = seconds(policy, attempt, seed), seconds(exact, attempt)

    assert longest * (1 - jitter) - 1e-6 <= delay <= longest


def test_the_same_draw_gives_the_same_delay() -> None:
    assert seconds(RetryPolicy(), 3, seed=5) == seconds(RetryPolicy(), 3, seed=5)
    assert seconds(RetryPolicy(), 3, seed=5) != seconds(RetryPolicy(), 3, seed=6)


def test_the_number_of_attempts_counts_the_first() -> None:
    policy = RetryPolicy(attempts=3)

    assert [policy.retries(OSError(), attempt) for attempt in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]
    assert not RetryPolicy(attempts=1).retries(OSError(), 1)


def test_no_attempts_means_no_end() -> None:
    assert RetryPolicy(attempts=0).retries(OSError(), 10**9)


def test_errors_are_chosen_by_type() -> None:
    policy = RetryPolicy(retry_on=(OSError,), give_up_on=(FileNotFoundError,))

    assert policy.retries(ConnectionResetError(), 1)
    assert not policy.retries(FileNotFoundError(), 1)
    assert not policy.retries(ValueError(), 1)


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit()])
def test_what_is_no_failure_is_not_tried_again(error: BaseException) -> None:
    assert not RetryPolicy().retries(error, 1)


@pytest.mark.parametrize(
    "settings",
    [
        {"attempts": -1},
        {"initial": timedelta(seconds=-1)},
        {"initial": timedelta(minutes=2), "maximum": timedelta(minutes=1)},
        {"factor": 0.5},
        {"factor": float("nan")},
        {"jitter": -0.1},
        {"jitter": 1.1},
        {"jitter": float("nan")},
    ],
    ids=str,
)
def test_a_policy_that_cannot_work_is_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="RetryPolicy"):
        RetryPolicy(**settings)


@pytest.mark.parametrize("failures", [10, 1_100, 10**9])
def test_a_loop_that_must_not_end_waits_for_a_bounded_time_however_often_it_failed(
    failures: int,
) -> None:
    assert 2.5 <= again_in(failures) <= 5
    assert 0.5 <= again_in(failures, first=0.1, longest=1) <= 1


def test_a_loop_waits_twice_as_long_for_each_failure() -> None:
    assert all(0.05 <= again_in(1) <= 0.1 for _ in range(100))
    assert all(0.1 <= again_in(2) <= 0.2 for _ in range(100))
