"""Request ids are unique and only grow; shards of entities never change."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.core.errors import StorageUnavailable
from engine.core.ids import (
    MachineLease,
    ShardId,
    SnowflakeGenerator,
    shard_of,
    snowflake_time,
)

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)


class Hands:
    """A clock whose hands are moved by the test."""

    def __init__(self, now: datetime = NOON) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


def lease(machine: int = 7, *, until: datetime = NOON + timedelta(hours=1)) -> MachineLease:
    return MachineLease(machine=machine, until=until)


def generator(now: Callable[[], datetime], machine: int = 7) -> SnowflakeGenerator:
    return SnowflakeGenerator(now=now, lease=lease(machine))


def test_a_million_ids_are_unique_and_grow_across_a_clock_that_steps_back() -> None:
    clock = Hands()
    ids = generator(clock)
    made: list[int] = []

    for step in range(1_000):
        clock.now += MILLISECOND * (-40 if step % 100 == 50 else 1)
        made += [ids.next() for _ in range(1_000)]

    assert len(set(made)) == 1_000_000
    assert all(one < other for one, other in pairwise(made))


def test_an_id_holds_its_time_and_its_machine() -> None:
    id = generator(Hands(NOON + timedelta(microseconds=987_654)), machine=1023).next()

    assert snowflake_time(id) == NOON + timedelta(microseconds=987_000)
    assert id >> 12 & 1023 == 1023
    assert id & 4095 == 0


def test_ids_fit_a_bigint_until_2090() -> None:
    clock = Hands(datetime(2090, 1, 1, tzinfo=UTC))
    ids = SnowflakeGenerator(now=clock, lease=lease(1023, until=clock.now + timedelta(hours=1)))

    assert ids.next() < 1 << 63


def test_more_than_fit_into_a_millisecond_borrow_from_the_next() -> None:
    ids = generator(Hands())

    made = [ids.next() for _ in range(4_097)]

    assert snowflake_time(made[4_095]) == NOON
    assert snowflake_time(made[4_096]) == NOON + MILLISECOND


def test_two_machines_never_make_the_same_id() -> None:
    one, two = generator(Hands(), machine=1), generator(Hands(), machine=2)

    assert not {one.next() for _ in range(5_000)} & {two.next() for _ in range(5_000)}


def test_without_a_lease_no_id_is_made() -> None:
    with pytest.raises(StorageUnavailable, match="lease"):
        SnowflakeGenerator(now=Hands()).next()


@pytest.mark.parametrize("late", [timedelta(0), MILLISECOND, timedelta(days=1)])
def test_at_the_end_of_its_lease_a_generator_refuses(late: timedelta) -> None:
    clock = Hands()
    ids = generator(clock)
    ids.next()

    clock.now = lease().until + late

    with pytest.raises(StorageUnavailable, match="lease"):
        ids.next()


def test_a_generator_does_not_borrow_time_past_its_lease() -> None:
    ids = SnowflakeGenerator(now=Hands(), lease=lease(until=NOON + MILLISECOND))
    for _ in range(4_096):
        ids.next()

    with pytest.raises(StorageUnavailable, match="lease"):
        ids.next()


def test_a_renewed_lease_goes_on_where_the_last_ended() -> None:
    clock = Hands()
    ids = generator(clock)
    before = ids.next()
    clock.now -= timedelta(seconds=5)

    ids.renew(lease(8, until=NOON + timedelta(hours=2)))

    assert ids.lease == lease(8, until=NOON + timedelta(hours=2))
    after = ids.next()
    assert after > before
    assert after >> 12 & 1023 == 8


def test_a_lesser_machine_id_in_the_same_millisecond_makes_greater_ids() -> None:
    ids = generator(Hands(), machine=900)
    before = [ids.next() for _ in range(10)]

    ids.renew(lease(3))

    assert ids.next() > max(before)


@pytest.mark.parametrize(
    ("entity_type", "entity_id", "number"),
    [
        ("Fulfil", "o-1", 223),
        ("Fulfil", "o-2", 89),
        ("Stock", "sku-1", 262),
        ("Stock", "", 145),
        ("Bestellung", "Größe/ä ☃", 31),
    ],
)
def test_the_shard_of_an_entity_is_pinned(entity_type: str, entity_id: str, number: int) -> None:
    assert shard_of("default", 300, entity_type, entity_id) == ShardId("default", number)


@given(entity_type=st.text(), entity_id=st.text(), shards=st.integers(1, 1_000))
def test_every_entity_has_a_shard_of_its_group(
    entity_type: str, entity_id: str, shards: int
) -> None:
    shard = shard_of("blue", shards, entity_type, entity_id)

    assert shard.group == "blue"
    assert 1 <= shard.number <= shards


def test_a_text_that_cannot_be_stored_has_a_shard_and_fails_where_it_is_stored() -> None:
    assert shard_of("default", 300, "Stock", "\ud800").group == "default"


def test_entities_are_spread_over_the_shards() -> None:
    counts = dict.fromkeys(range(1, 301), 0)
    for number in range(30_000):
        counts[shard_of("default", 300, "Fulfil", f"o-{number}").number] += 1

    assert 50 < min(counts.values()) <= max(counts.values()) < 170
