"""Suspects run in ever smaller company, so that only what kills its process is blamed for long."""

from collections.abc import Callable, Mapping
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cluster.trials import Trials
from engine.storage.protocol import SUSPECT
from engine.testing.clock import VirtualClock

LIMIT = 10


class Court:
    """Trials with the names of those that run."""

    def __init__(self, limit: int = LIMIT, clock: VirtualClock | None = None) -> None:
        self.clock = clock or VirtualClock()
        self.trials = Trials(max_deliveries=limit, clock=self.clock, soon=self._soon)
        self.running: list[Any] = []
        self._due: list[Callable[[], None]] = []

    def ask(self, *suspects: object, failures: int = SUSPECT) -> None:
        self.ask_all(dict.fromkeys(suspects, failures))

    def ask_all(self, failures: Mapping[Any, int]) -> None:
        """In one turn."""
        for each, failed in failures.items():
            self.trials.ask(each, failed, partial(self.running.append, each))
        self._turn()

    def end(self, *suspects: object) -> None:
        for each in suspects:
            if each in self.running:
                self.running.remove(each)
            self.trials.done(each)
        self._turn()

    def _soon(self, callback: Callable[[], None]) -> None:
        self._due.append(callback)

    def _turn(self) -> None:
        while self._due:
            self._due.pop()()


@pytest.mark.parametrize(
    ("failures", "company"), [(3, 64), (4, 16), (5, 4), (6, 1), (7, 1), (9, 1)]
)
def test_the_more_failures_the_smaller_the_company(failures: int, company: int) -> None:
    court = Court()
    court.ask(*range(100), failures=failures)
    assert court.running == list(range(company))


@pytest.mark.parametrize("limit", range(4, 10))
def test_with_one_delivery_left_a_suspect_is_alone(limit: int) -> None:
    court = Court(limit)
    court.ask("a", "b", failures=limit - 1)
    assert court.running == ["a"]


def test_the_next_begins_when_one_has_ended() -> None:
    court = Court()
    court.ask("a", "b", "c", failures=6)
    court.end("a")
    assert court.running == ["b"]
    court.end("b", "c")
    assert (court.running, len(court.trials)) == ([], 0)


def test_the_least_suspect_go_first_and_the_worst_waits_until_it_can_be_alone() -> None:
    court = Court()
    court.ask("first", failures=5)
    court.ask("worst", failures=6)
    court.ask("least", failures=3)
    court.ask("less", failures=4)
    assert court.running == ["first", "least", "less"]
    court.end("first", "least")
    assert court.running == ["less"]
    court.end("less")
    assert court.running == ["worst"]


def test_one_that_is_given_up_while_it_waits_never_runs() -> None:
    court = Court()
    court.ask("a", "b", "c", failures=6)
    court.end("b")
    court.end("a")
    assert court.running == ["c"]


async def test_others_wait_a_minute_at_most_for_company_that_takes_long() -> None:
    court = Court()
    court.ask(*range(16), failures=4)
    court.ask("late", failures=4)
    await court.clock.advance(timedelta(seconds=59))
    assert "late" not in court.running
    await court.clock.advance(timedelta(seconds=1))
    assert "late" in court.running


def test_those_who_ask_in_one_turn_are_tried_in_the_order_of_their_failures() -> None:
    court = Court()
    court.ask_all({"worst": 8, "bad": 6, "least": 3, "less": 5})
    assert court.running == ["least", "less"]
    court.end("least", "less")
    assert court.running == ["bad"]


async def test_one_that_is_alone_keeps_others_from_being_alone_as_long_as_it_takes() -> None:
    court = Court()
    court.ask("long", failures=7)
    court.ask("other", failures=6)
    await court.clock.advance(timedelta(hours=1))
    assert court.running == ["long"]
    court.ask("less", failures=3)
    assert court.running == ["long", "less"]
    court.end("long", "less")
    assert court.running == ["other"]


class World:
    """Messages of which some kill their process as soon as they run, in one process after the
    other. A death is counted as storage does it, and nothing else has ended by then."""

    def __init__(self, *, innocents: int, killers: int) -> None:
        self.killers = frozenset(range(innocents, innocents + killers))
        self.failures: dict[int, int] = dict.fromkeys(range(innocents + killers), 0)
        self.dead: set[int] = set()
        self.blamed = 0

    def live(self) -> None:
        """The life of one process."""
        court = Court()
        self.dead |= {each for each, failures in self.failures.items() if failures >= LIMIT}
        for each in self.dead & self.failures.keys():
            del self.failures[each]
        plain = [each for each, failures in self.failures.items() if failures < SUSPECT]
        court.ask_all({each: n for each, n in self.failures.items() if n >= SUSPECT})
        while running := {*plain, *court.running}:
            if running & self.killers:
                self._die(running)
                return
            for each in running:
                del self.failures[each]
                court.end(each)
            plain = []

    def _die(self, running: set[int]) -> None:
        for each in running:
            self.failures[each] += 1
        innocents = running - self.killers
        self.blamed = max([self.blamed, *(self.failures[each] for each in innocents)])


@given(innocents=st.integers(0, 300), killers=st.integers(0, 5))
def test_killers_are_found_and_no_innocent_is_blamed_to_the_end(
    innocents: int, killers: int
) -> None:
    world = World(innocents=innocents, killers=killers)
    lives = 0
    while world.failures:
        world.live()
        lives += 1
        assert lives <= 1 + LIMIT * max(killers, 1)
    assert world.dead == world.killers
    assert world.blamed <= 6
