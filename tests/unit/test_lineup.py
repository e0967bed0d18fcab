"""Who is next in a queue: by priority, keys in turn, the oldest first, none beyond its limit."""

from itertools import count

from engine.cluster.lineup import Lineup
from engine.core.ids import Snowflake
from engine.storage.queues import Line, QueueItem

_ids = count(1)


def item(key: str = "a", priority: int = 0) -> QueueItem:
    id = next(_ids)
    return QueueItem(request_id=Snowflake(id), seq=id, priority=priority, key=key)


def line(key: str, count: int, priority: int = 0) -> Line:
    return Line(priority=priority, key=key, count=count)


def test_the_oldest_of_a_key_is_next() -> None:
    lineup, items = Lineup(), [item() for _ in range(3)]
    for each in items:
        lineup.arrive(each)

    assert lineup.choose(2) == (items[:2], [])
    assert lineup.store(items) == items[2:]
    assert lineup.choose(2) == ([], [line("a", 1)])
    assert lineup.choose(2) == ([], [])


def test_what_is_stored_goes_before_what_arrives() -> None:
    lineup, late = Lineup(), item()
    lineup.add_stored(line("a", 2))
    lineup.arrive(late)

    assert lineup.choose(2) == ([], [line("a", 2)])
    assert lineup.choose(2) == ([late], [])


def test_a_key_with_many_items_does_not_starve_another() -> None:
    lineup = Lineup()
    lineup.add_stored(line("many", 10_000))
    lineup.add_stored(line("few", 2))

    _, chosen = lineup.choose(3)

    assert sorted((each.key, each.count) for each in chosen) == [("few", 1), ("many", 2)]
    assert lineup.choose(1) == ([], [line("few", 1)])


def test_a_higher_priority_goes_first_whatever_its_key() -> None:
    lineup = Lineup()
    lineup.add_stored(line("a", 5, priority=1))
    lineup.add_stored(line("a", 1, priority=2))
    lineup.add_stored(line("b", 1, priority=-1))

    assert lineup.choose(2)[1] == [line("a", 1, priority=2), line("a", 1, priority=1)]


def test_a_key_that_has_as_many_as_it_may_is_passed_over_until_one_ends() -> None:
    lineup = Lineup(per_key=2)
    lineup.began("a")
    lineup.add_stored(line("a", 3))
    lineup.add_stored(line("a", 3, priority=-1))
    lineup.add_stored(line("b", 1))

    assert lineup.choose(10)[1] == [line("a", 1), line("b", 1)]
    assert not lineup.ready
    lineup.ended("a")
    assert lineup.ready
    assert lineup.choose(10)[1] == [line("a", 1)]


def test_another_limit_holds_from_now_on() -> None:
    lineup = Lineup(per_key=1)
    lineup.add_stored(line("a", 5))
    assert lineup.choose(10)[1] == [line("a", 1)]

    lineup.limit(3)

    assert lineup.choose(10)[1] == [line("a", 2)]
    lineup.limit(1)
    lineup.ended("a")
    assert lineup.choose(10) == ([], [])


def test_one_that_leaves_is_not_chosen() -> None:
    lineup = Lineup()
    lineup.add_stored(line("a", 2))

    assert lineup.leave(0, "a")
    assert lineup.leave(0, "a")
    assert not lineup.leave(0, "a")
    assert not lineup.leave(7, "nobody")
    assert lineup.choose(10) == ([], [])


def test_lines_that_are_empty_cost_no_memory() -> None:
    lineup = Lineup(per_key=1)
    for priority in range(100):
        lineup.arrive(item(f"k{priority}", priority))
        lineup.add_stored(line("left", 1, priority))
        assert lineup.leave(priority, "left")
    arrived, _ = lineup.choose(100)
    for each in arrived:
        lineup.ended(each.key)

    assert len(arrived) == 100
    assert not lineup._lines
    assert not lineup._turns
    assert not lineup.leave(7, "k7")
    assert not lineup._lines
