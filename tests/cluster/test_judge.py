"""When a silent peer may be declared dead, and when its silence proves nothing."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from engine.cluster.judge import Judge
from engine.cluster.view import View
from engine.core.ids import RunnerId
from engine.storage.protocol import RunnerRow

INTERVAL = timedelta(seconds=2)
TTL = timedelta(seconds=10)
ME = RunnerId(UUID(int=1))
PEER = RunnerId(UUID(int=2))
START = datetime(2026, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)


def view(
    at: float, silent: float | None, *, took: float = 0.001, database: float | None = None
) -> View:
    """My heartbeat ``at`` seconds of my clock; the peer's last is ``silent`` seconds old."""
    now = START + timedelta(seconds=at if database is None else database)
    beat_at = None if silent is None else now - timedelta(seconds=silent)
    rows = (
        RunnerRow(id=ME, groups=(), beat_at=now),
        RunnerRow(id=PEER, groups=(), beat_at=beat_at),
    )
    return View(me=ME, now=now, runners=rows, sent=at - took, received=at)


def judge_after(*views: View, server_up: timedelta = DAY) -> list[RunnerId]:
    judge = Judge(interval=INTERVAL, ttl=TTL)
    condemned: list[RunnerId] = []
    for each in views:
        judged = replace(each, silent=judge.hear(each, server_up=server_up))
        condemned = list(judge.condemn(judged))
    return condemned


def silent_after(*views: View) -> list[RunnerId]:
    judge = Judge(interval=INTERVAL, ttl=TTL)
    silent: list[RunnerId] = []
    for each in views:
        silent = list(judge.hear(each, server_up=DAY))
    return silent


def test_a_peer_silent_for_longer_than_the_ttl_is_dead() -> None:
    assert judge_after(view(0, 6.5), view(2, 8.5), view(4, 10.5)) == [PEER]


def test_a_peer_silent_for_just_the_ttl_lives() -> None:
    assert judge_after(view(0, 6), view(2, 8), view(4, 10)) == []


def test_a_peer_without_a_heartbeat_is_unknown_and_not_dead() -> None:
    assert judge_after(view(0, None), view(2, None), view(4, None)) == []


def test_one_does_not_judge_oneself() -> None:
    silent_me = view(4, 1)
    rows = (RunnerRow(id=ME, groups=(), beat_at=START - DAY),)
    silent_me = View(me=ME, now=silent_me.now, runners=rows, sent=4, received=4)
    assert judge_after(view(0, 1), view(2, 1), silent_me) == []


def test_nobody_is_judged_before_two_heartbeats_have_come_on_time() -> None:
    assert judge_after(view(0, 100)) == []
    assert judge_after(view(0, 100), view(2, 100)) == []
    assert judge_after(view(0, 100), view(2, 100), view(4, 100)) == [PEER]


def test_extra_heartbeats_do_not_shorten_that_time() -> None:
    assert judge_after(*(view(tenth / 10, 100) for tenth in range(20))) == []


def test_after_a_late_heartbeat_of_ones_own_nobody_is_judged_for_a_ttl() -> None:
    steady = [view(at, 1) for at in (0, 2, 4)]
    late = [view(at, 100) for at in range(12, 21, 2)]
    assert judge_after(*steady, *late) == []
    assert judge_after(*steady, *late, view(22, 100)) == [PEER]


def test_a_heartbeat_whose_answer_took_longer_than_the_interval_is_late() -> None:
    steady = [view(at, 1) for at in (0, 2, 4)]
    assert judge_after(*steady, view(7, 100, took=2.5), view(9, 100), view(11, 100)) == []


def test_a_step_of_the_databases_clock_condemns_nobody() -> None:
    steady = [view(at, 1) for at in (0, 2, 4)]
    assert judge_after(*steady, view(6, 3603, database=3606), view(8, 3605, database=3608)) == []


def test_a_machine_that_was_suspended_judges_nobody_when_it_wakes() -> None:
    """The monotonic clock stands still meanwhile: only the database's shows the gap."""
    steady = [view(at, 1) for at in (0, 2, 4)]
    assert judge_after(*steady, view(6, 603, database=606), view(8, 605, database=608)) == []


def test_nobody_is_judged_within_a_ttl_of_the_servers_start() -> None:
    silent = [view(at, 100) for at in (0, 2, 4, 6)]
    assert judge_after(*silent, server_up=timedelta(seconds=9.9)) == []
    assert judge_after(*silent, server_up=timedelta(seconds=10)) == [PEER]


def test_a_peer_whose_heartbeat_is_overdue_is_silent_before_it_is_dead() -> None:
    late = [view(0, 1), view(2, 1), view(4, 3.1)]
    assert silent_after(*late) == [PEER]
    assert judge_after(*late) == []


def test_a_peer_within_its_rhythm_is_not_silent() -> None:
    assert silent_after(view(0, 1.9), view(2, 1.9), view(4, 2.4)) == []


def test_after_an_outage_of_ones_own_nobody_is_silent_for_a_ttl() -> None:
    steady = [view(at, 1) for at in (0, 2, 4)]
    assert silent_after(*steady, *(view(at, 100) for at in range(12, 21, 2))) == []
