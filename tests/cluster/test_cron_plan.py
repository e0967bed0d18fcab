"""What the owner of a cron decides: pure, whenever it looks and however long nobody did."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine import FireOutcome, Overlap
from engine.cluster.cron_plan import ON_TIME, Decision, Plan, Span, Standing, plan
from engine.cluster.instants import Instants
from engine.cluster.timetable import Rules
from engine.core.ids import Snowflake
from tests.cluster.cron_cases import enumerated, expressions, moments, unhurried, zones

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
RUN = Snowflake(7)
STARTED, OVERLAPPED = FireOutcome.STARTED, FireOutcome.OVERLAPPED
MISSED, TOO_OLD = FireOutcome.MISSED, FireOutcome.TOO_OLD


def rules(
    overlap: Overlap = Overlap.ALLOW,
    *,
    catch_up: timedelta = timedelta(days=1),
    skip_if_older_than: timedelta | None = None,
) -> Rules:
    """Every minute."""
    return Rules(
        instants=Instants("* * * * *", "UTC"),
        overlap=overlap,
        catch_up=catch_up,
        skip_if_older_than=skip_if_older_than,
    )


def standing(*, running: bool = False, buffered: datetime | None = None) -> Standing:
    """All is dealt with up to noon."""
    return Standing(done_until=NOON, running=(RUN,) if running else (), buffered=buffered)


def told(made: Plan) -> list[tuple[int, FireOutcome]]:
    """The decisions by the minutes after noon."""
    return [(_minutes(each.instant), each.outcome) for each in made.decisions]


def _minutes(instant: datetime) -> int:
    return round((instant - NOON) / MINUTE)


def at(minutes: float) -> datetime:
    return NOON + minutes * MINUTE


# --- the instants ---------------------------------------------------------------------------------

gaps = st.lists(st.timedeltas(timedelta(0), timedelta(hours=1)), min_size=1, max_size=8)


def looks(overlap: Rules, begin: datetime, spans: list[timedelta], limit: int) -> Iterator[Plan]:
    """What is decided by an owner that looks after each of these spans, until nothing is left."""
    now, stands = begin, Standing(done_until=begin)
    for span in spans:
        now += span
        while True:
            made = plan(overlap, stands, now, limit=limit)
            yield made
            stands = made.standing
            if not made.more:
                break


@unhurried
@given(expressions, zones, moments, gaps, st.integers(1, 700))
def test_whenever_it_looks_it_starts_just_the_instants_that_the_library_enumerates(
    schedule: str, zone: str, begin: datetime, spans: list[timedelta], limit: int
) -> None:
    every = Rules(instants=Instants(schedule, zone), overlap=Overlap.ALLOW)
    until = begin + sum(spans, timedelta(0))

    plans = list(looks(every, begin, spans, max(limit, 60)))

    expected = [at for at in enumerated(schedule, zone, begin, until) if at > begin]
    assert [each.instant for made in plans for each in made.starts] == expected
    assert all(made.decisions == tuple(made.starts) for made in plans)


@unhurried
@given(expressions, zones, moments, gaps, st.timedeltas(timedelta(0), timedelta(hours=2)))
def test_what_is_noticed_after_the_catch_up_window_is_missed_and_all_else_is_started(
    schedule: str, zone: str, begin: datetime, spans: list[timedelta], window: timedelta
) -> None:
    every = Rules(instants=Instants(schedule, zone), overlap=Overlap.ALLOW, catch_up=window)

    expected, now, window = list[Decision](), begin, max(window, ON_TIME)
    for span in spans:
        seen = [at for at in enumerated(schedule, zone, now, now + span) if at > now]
        now += span
        expected += [
            Decision(instant=at, outcome=STARTED if now - at <= window else MISSED) for at in seen
        ]

    found = [each for made in looks(every, begin, spans, 20_000) for each in made.decisions]

    assert found == expected


@unhurried
@given(expressions, zones, moments, gaps, st.sampled_from(Overlap), st.data())
def test_each_instant_gets_one_outcome_whatever_runs_meanwhile(
    schedule: str,
    zone: str,
    begin: datetime,
    spans: list[timedelta],
    overlap: Overlap,
    data: st.DataObject,
) -> None:
    every = Rules(instants=Instants(schedule, zone), overlap=overlap)
    now, stands = begin, Standing(done_until=begin)
    outcomes: dict[datetime, FireOutcome] = {}
    for span in spans:
        now += span
        more = True
        while more:
            made = plan(every, stands, now, limit=300)
            for each in made.decisions:
                assert each.instant not in outcomes
                outcomes[each.instant] = each.outcome
            busy = bool(stands.running or made.starts)
            goes_on = busy and data.draw(st.booleans(), label="a run goes on")
            stands = replace(made.standing, running=(RUN,) if goes_on else ())
            more = made.more
            if overlap is not Overlap.ALLOW:
                assert len(made.starts) <= 1

    waiting = set() if stands.buffered is None else {stands.buffered}
    seen = {at for at in enumerated(schedule, zone, begin, now) if at > begin}
    assert outcomes.keys() | waiting == seen
    assert not outcomes.keys() & waiting


def test_it_knows_when_the_next_instant_comes() -> None:
    assert plan(rules(), standing(), at(0.5)).next_at == at(1)
    assert plan(rules(), standing(), at(1)).next_at == at(2)


def test_after_a_year_of_silence_not_every_missed_instant_is_noted() -> None:
    made = plan(rules(), standing(), at(60 * 24 * 365), limit=100)

    assert [each.outcome for each in made.decisions] == [MISSED] * 100 + [STARTED] * 100
    assert made.decisions[100].instant == at(60 * 24 * 364)
    assert made.more


def test_an_instant_just_within_the_catch_up_window_runs() -> None:
    short = rules(catch_up=2 * MINUTE)

    assert told(plan(short, standing(), at(4))) == [
        (1, MISSED),
        (2, STARTED),
        (3, STARTED),
        (4, STARTED),
    ]


def test_without_a_catch_up_window_only_what_is_noticed_within_seconds_runs() -> None:
    on_time = at(1) + ON_TIME
    assert told(plan(rules(catch_up=timedelta(0)), standing(), on_time)) == [(1, STARTED)]
    late = on_time + timedelta(milliseconds=1)
    assert told(plan(rules(catch_up=timedelta(0)), standing(), late)) == [(1, MISSED)]


# --- what was begun before ------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", Overlap)
@pytest.mark.parametrize(
    "windows", [{"catch_up": MINUTE / 2}, {"skip_if_older_than": MINUTE / 2}], ids=["missed", "old"]
)
def test_what_has_begun_is_started_however_late_it_is_noticed(
    overlap: Overlap, windows: dict[str, timedelta]
) -> None:
    made = plan(rules(overlap, **windows), standing(), at(1.75), begun={at(1)})

    assert told(made) == [(1, STARTED)]


def test_what_has_begun_counts_as_a_run_for_what_comes_after_it() -> None:
    def after_it(overlap: Overlap) -> tuple[list[tuple[int, FireOutcome]], datetime | None, bool]:
        made = plan(rules(overlap), standing(running=True), at(2), begun={at(1)})
        return told(made), made.standing.buffered, made.interrupt

    assert after_it(Overlap.SKIP) == ([(1, STARTED), (2, OVERLAPPED)], None, False)
    assert after_it(Overlap.BUFFER_ONE) == ([(1, STARTED)], at(2), False)
    assert after_it(Overlap.CANCEL) == ([(1, STARTED)], at(2), True)
    assert after_it(Overlap.ALLOW) == ([(1, STARTED), (2, STARTED)], None, False)


@pytest.mark.parametrize("paused", [True, False])
def test_what_waited_and_has_begun_is_started_when_it_would_be_left_out(paused: bool) -> None:
    waits = replace(standing(running=True, buffered=at(0)), paused=paused)

    made = plan(rules(Overlap.CANCEL), waits, at(1), begun={at(0)})

    assert told(made) == [(0, STARTED)]


# --- overlaps -------------------------------------------------------------------------------------


def test_skip_leaves_out_what_comes_while_a_run_goes_on() -> None:
    busy = plan(rules(Overlap.SKIP), standing(running=True), at(2))
    assert told(busy) == [(1, OVERLAPPED), (2, OVERLAPPED)]

    free = plan(rules(Overlap.SKIP), replace(busy.standing, running=()), at(3))
    assert told(free) == [(3, STARTED)]


def test_skip_starts_the_first_of_several_that_are_late() -> None:
    made = plan(rules(Overlap.SKIP), standing(), at(3))

    assert told(made) == [(1, STARTED), (2, OVERLAPPED), (3, OVERLAPPED)]


def test_buffer_one_keeps_one_instant_until_the_run_has_ended() -> None:
    busy = plan(rules(Overlap.BUFFER_ONE), standing(running=True), at(3))
    assert told(busy) == [(2, OVERLAPPED), (3, OVERLAPPED)]
    assert busy.standing.buffered == at(1)

    free = plan(rules(Overlap.BUFFER_ONE), replace(busy.standing, running=()), at(3.5))
    assert told(free) == [(1, STARTED)]
    assert free.standing.buffered is None


def test_what_was_buffered_goes_before_what_is_due_at_that_time() -> None:
    made = plan(rules(Overlap.BUFFER_ONE), replace(standing(buffered=at(-1))), at(1))

    assert told(made) == [(-1, STARTED)]
    assert made.standing.buffered == at(1)


def test_allow_starts_everything() -> None:
    made = plan(rules(Overlap.ALLOW), standing(running=True), at(3))

    assert told(made) == [(1, STARTED), (2, STARTED), (3, STARTED)]


def test_cancel_interrupts_the_run_and_starts_when_it_has_ended() -> None:
    busy = plan(rules(Overlap.CANCEL), standing(running=True), at(1))
    assert (told(busy), busy.interrupt, busy.standing.buffered) == ([], True, at(1))

    later = plan(rules(Overlap.CANCEL), busy.standing, at(2))
    assert (told(later), later.interrupt, later.standing.buffered) == (
        [(1, OVERLAPPED)],
        True,
        at(2),
    )

    free = plan(rules(Overlap.CANCEL), replace(later.standing, running=()), at(2.5))
    assert (told(free), free.interrupt, free.standing.buffered) == ([(2, STARTED)], False, None)


def test_cancel_starts_only_the_last_of_several_that_are_late() -> None:
    made = plan(rules(Overlap.CANCEL), standing(), at(3))

    assert told(made) == [(1, OVERLAPPED), (2, OVERLAPPED), (3, STARTED)]
    assert not made.interrupt


@pytest.mark.parametrize("overlap", Overlap)
def test_an_instant_that_waited_for_too_long_is_left_out(overlap: Overlap) -> None:
    short = rules(overlap, skip_if_older_than=0.25 * MINUTE)

    made = plan(short, standing(buffered=at(0)), at(0.5))

    assert told(made) == [(0, TOO_OLD)]
    assert made.standing.buffered is None


def test_an_instant_that_is_noticed_too_late_to_begin_is_left_out() -> None:
    short = rules(skip_if_older_than=MINUTE)

    assert told(plan(short, standing(), at(3))) == [(1, TOO_OLD), (2, STARTED), (3, STARTED)]


# --- what people ask for --------------------------------------------------------------------------


def test_while_it_is_paused_nothing_is_due() -> None:
    made = plan(rules(), replace(standing(), paused=True), at(3))

    assert (told(made), made.next_at, made.standing.done_until) == ([], None, NOON)


@pytest.mark.parametrize("overlap", [Overlap.BUFFER_ONE, Overlap.CANCEL])
@pytest.mark.parametrize("running", [True, False])
def test_a_pause_leaves_out_what_waits_but_for_what_was_asked_for(
    overlap: Overlap, running: bool
) -> None:
    def paused(buffered: datetime) -> Plan:
        stands = replace(standing(running=running, buffered=buffered), paused=True)
        return plan(rules(overlap), stands, at(2.5))

    scheduled, asked = paused(at(2)), paused(at(2.25))
    assert (told(scheduled), scheduled.standing.buffered) == ([(2, OVERLAPPED)], None)
    assert not scheduled.interrupt
    assert [each.outcome for each in asked.decisions] == ([] if running else [STARTED])
    assert asked.standing.buffered == (at(2.25) if running else None)


@pytest.mark.parametrize("paused", [True, False])
def test_an_instant_that_is_asked_for_runs_also_while_it_is_paused(paused: bool) -> None:
    asked = at(0.5)

    made = plan(rules(), replace(standing(), paused=paused), at(0.5), asked=[asked])

    assert made.decisions == (Decision(instant=asked, outcome=STARTED, manual=True),)


def test_an_instant_that_is_asked_for_keeps_to_the_overlap_policy() -> None:
    def ask(overlap: Overlap) -> tuple[list[FireOutcome], bool]:
        made = plan(rules(overlap), standing(running=True), at(0.5), asked=[at(0.5)])
        return [each.outcome for each in made.decisions], made.standing.buffered == at(0.5)

    assert ask(Overlap.SKIP) == ([OVERLAPPED], False)
    assert ask(Overlap.BUFFER_ONE) == ([], True)
    assert ask(Overlap.ALLOW) == ([STARTED], False)
    assert ask(Overlap.CANCEL) == ([], True)


@pytest.mark.parametrize("overlap", [Overlap.BUFFER_ONE, Overlap.CANCEL])
def test_asking_again_for_an_instant_that_waits_changes_nothing(overlap: Overlap) -> None:
    waits = standing(running=True, buffered=at(0.5))

    made = plan(rules(overlap), waits, at(0.6), asked=[at(0.5)])

    assert (made.decisions, made.standing) == ((), waits)


def test_a_backlog_runs_at_once_where_runs_may_overlap() -> None:
    backlog = (Span(first=at(-3), last=at(-2)), Span(first=at(-9), last=at(-8.5)))

    made = plan(rules(), replace(standing(), backlog=backlog), at(0.5))

    assert told(made) == [(-3, STARTED), (-2, STARTED), (-9, STARTED)]
    assert all(each.manual for each in made.decisions)
    assert made.standing.backlog == ()


def test_a_backlog_runs_one_by_one_where_they_may_not() -> None:
    stands = replace(standing(), backlog=(Span(first=at(-3), last=at(-1)),))
    order: list[int] = []
    for _ in range(3):
        made = plan(rules(Overlap.SKIP), stands, at(0.5))
        order += [minutes for minutes, _ in told(made)]
        busy = replace(made.standing, running=(RUN,))
        assert told(plan(rules(Overlap.SKIP), busy, at(0.5))) == []
        stands = replace(busy, running=())

    last = plan(rules(Overlap.SKIP), stands, at(0.5))
    assert (order, told(last), last.standing.backlog) == ([-3, -2, -1], [], ())


def test_an_instant_is_started_once_though_it_is_due_and_in_the_backlog() -> None:
    stands = replace(standing(), backlog=(Span(first=at(-1), last=at(2)),))

    assert told(plan(rules(), stands, at(2))) == [
        (1, STARTED),
        (2, STARTED),
        (-1, STARTED),
        (0, STARTED),
    ]


def test_a_long_backlog_is_taken_in_portions() -> None:
    stands = replace(standing(), backlog=(Span(first=at(-100), last=at(-1)),))

    first = plan(rules(), stands, at(0.5), limit=60)
    second = plan(rules(), first.standing, at(0.5), limit=60)

    assert [len(first.starts), first.more, len(second.starts), second.more] == [60, True, 40, False]
