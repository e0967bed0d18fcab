"""The programs that the how-to pages show: the same end wherever the runner dies.

In memory with a crash at every write; on PostgreSQL with one in the middle of it.
"""

import asyncio
import runpy
import sys
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from engine import (
    Execution,
    ExecutionFailed,
    ExecutionInterrupted,
    JournalKind,
    UpdateRejected,
    activity,
)
from engine.testing import TestCluster, crash_at_every_step, lint_files
from examples import agent, approval, crawler, documents, polling, saga, subscription
from tests.eventually import eventually

ROOT = Path(__file__).parents[2]
SOON = timedelta(seconds=20)
PROGRAMS = ["saga", "approval", "documents", "polling", "subscription", "agent", "crawler"]


@pytest.mark.parametrize("name", PROGRAMS)
def test_it_runs_as_a_script(
    name: str, server_dsn: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OUTLAST_DSN", server_dsn)
    monkeypatch.setattr(sys, "argv", [f"{name}.py"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")

    said = capsys.readouterr().out
    assert ended.value.code == 0, said
    assert ENDS[name] in said


ENDS = {
    "saga": "car: ['t-1/car']",
    "approval": "approved approved=['ada', 'bob'] missing=0",
    "documents": "The same as a plain program counts.",
    "polling": "2 jobs, looked at 6 times",
    "subscription": "{'ada/1': 900",
    "agent": "['the glossary is longer']",
    "crawler": "The same twice",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_its_body_can_be_replayed(name: str) -> None:
    assert lint_files([ROOT / "examples" / f"{name}.py"]) == []


# --- saga -----------------------------------------------------------------------------------------


def trips() -> saga.BookTrip:
    return saga.BookTrip(
        flight=saga.Seats(rome=1, oslo=1), hotel=saga.Seats(rome=1, oslo=1), car=saga.Seats(rome=1)
    )


async def test_a_trip_is_booked_once_at_each_provider() -> None:
    async for outcome in crash_at_every_step(trips, saga.Trip(id="t", city="rome")):
        assert list(outcome.result) == ["flight", "hotel", "car"], outcome
        for part, seats in outcome.workflow.providers.items():
            assert (list(seats.booked), seats.free["rome"]) == ([f"t/{part}"], 0), outcome


async def test_nothing_stays_booked_of_a_trip_that_fails() -> None:
    async for outcome in crash_at_every_step(trips, saga.Trip(id="t", city="oslo")):
        with pytest.raises(ExecutionFailed, match="nothing is left in oslo"):
            assert outcome.result
        seats = outcome.workflow.providers.values()
        assert [each.booked for each in seats] == [{}, {}, {}], outcome
        assert [each.free["oslo"] for each in seats] == [1, 1, 0], outcome


class Slow(saga.Seats):
    """Books, and then says nothing for as long as it is told to."""

    def __init__(self, **cities: int) -> None:
        super().__init__(**cities)
        self.asked = asyncio.Event()
        self.answers = asyncio.Event()

    async def book(self, city: str, *, reference: str) -> str:
        ticket = await super().book(city, reference=reference)
        self.asked.set()
        await self.answers.wait()
        return ticket


async def test_a_booking_whose_answer_is_lost_is_made_once_and_undone_on_interrupt(
    dsn: str,
) -> None:
    flight, hotel = saga.Seats(rome=1), Slow(rome=1)
    async with TestCluster(saga.BookTrip(flight=flight, hotel=hotel), dsn=dsn) as cluster:
        trip = await cluster.client.start(saga.BookTrip, saga.Trip(id="t", city="rome"))
        await hotel.asked.wait()
        hotel.asked.clear()
        await cluster.crash()
        await hotel.asked.wait()  # asked again, under the same reference
        assert (hotel.free["rome"], list(hotel.booked)) == (0, ["t/hotel"])
        await trip.interrupt("the user has left")
        with pytest.raises(ExecutionInterrupted, match="the user has left"):
            await trip.join(SOON)

    assert (flight.free["rome"], hotel.free["rome"]) == (1, 1)


# --- approval -------------------------------------------------------------------------------------

LARGE = approval.Expense(id="e", by="cleo", cents=approval.LARGE, managers=["ada", "bob"])


class Mail:
    def __init__(self) -> None:
        self.sent: list[str] = []

    async def __call__(self, to: str, text: str) -> None:
        self.sent.append(f"{to} {text.rsplit(' ', 1)[1]}")


async def both_approve(cluster: TestCluster, execution: Execution[str]) -> None:
    for manager in ("ada", "bob"):
        await execution.update(approval.Approve.decide, manager, True)


async def test_an_expense_is_approved_by_two() -> None:
    mail = Mail()
    async for outcome in crash_at_every_step(
        lambda: approval.Approve(mail), LARGE, drive=both_approve
    ):
        assert outcome.result == "approved", outcome
        accepted = [e.payload for e in outcome.history if e.kind is JournalKind.UPDATE]
        assert len(accepted) == 2, outcome


async def test_nobody_who_answers_in_five_days_is_a_no() -> None:
    mail = Mail()
    async with TestCluster(approval.Approve(mail)) as cluster:
        execution = await cluster.client.start(approval.Approve, LARGE)
        await cluster.advance(timedelta(days=2, hours=1))
        await cluster.crash()
        await execution.update(approval.Approve.decide, "ada", True)
        await cluster.advance(timedelta(days=3))
        assert await execution.join() == "expired"

    days = {who: [text[-1] for text in mail.sent if text.startswith(who)] for who in ("ada", "bob")}
    assert days == {"ada": ["0", "1", "2"], "bob": ["0", "1", "2", "3", "4"]}


async def test_an_approval_outlives_the_runner_and_is_not_counted_twice(dsn: str) -> None:
    async with TestCluster(approval.Approve(Mail()), dsn=dsn) as cluster:
        execution = await cluster.client.start(approval.Approve, LARGE)
        await execution.update(approval.Approve.decide, "ada", True)
        await cluster.crash()
        for manager, why in (("ada", "already"), ("cleo", "may not")):
            with pytest.raises(UpdateRejected, match=why):
                await execution.update(approval.Approve.decide, manager, True)
        state = await execution.update(approval.Approve.decide, "bob", False)
        assert state.approved == ["ada"]
        assert await execution.join(SOON) == "refused by bob"


# --- fan-out --------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text(f"{name} word\n" * (documents.LINES * 2))
    return tmp_path


async def test_the_pages_of_all_files_are_counted_once(folder: Path) -> None:
    async for outcome in crash_at_every_step(documents.CountWords(), str(folder)):
        assert outcome.result == documents.plain(folder), outcome
        assert [event.name for event in outcome.history] == ["pages", *["count"] * 4], outcome


class Pages(documents.CountWords):
    """Counts the first page of each file at once, and the others when it is told to."""

    name = "CountWords"

    def __init__(self) -> None:
        self.begun: list[int] = []
        self.others = asyncio.Event()

    @activity
    async def count(self, page: documents.Page) -> dict[str, int]:
        self.begun.append(page.first)
        if page.first:
            await self.others.wait()
        lines = Path(page.file).read_text().splitlines()[page.first :][: page.lines]
        return Counter(documents.words("\n".join(lines)))


async def test_pages_that_were_counted_are_not_counted_again(dsn: str, folder: Path) -> None:
    pages = Pages()
    async with TestCluster(pages, dsn=dsn) as cluster:
        execution = await cluster.client.start(documents.CountWords, str(folder))

        async def two_are_stored() -> bool:
            return len(await execution.history()) == 3

        await eventually(two_are_stored)
        await cluster.crash()
        pages.others.set()
        assert await execution.join(SOON) == documents.plain(folder)

    assert (pages.begun.count(0), pages.begun.count(documents.LINES)) == (2, 4)


# --- polling --------------------------------------------------------------------------------------

TICK = timedelta(milliseconds=10)


async def test_a_job_is_submitted_once_and_its_result_found() -> None:
    async for outcome in crash_at_every_step(polling.Render(polling.SmallFarm()), "sunrise"):
        assert outcome.result == "farm://job-1-sunrise.mp4", outcome
        assert len(outcome.workflow.farm.jobs) == 1, outcome
        assert outcome.workflow.farm.cancelled == set(), outcome


async def test_a_job_that_never_ends_is_cancelled_after_two_days() -> None:
    farm = polling.SmallFarm(looks=10_000)
    async with TestCluster(polling.Render(farm)) as cluster:
        execution = await cluster.client.start(polling.Render, "sunrise")
        await cluster.advance(timedelta(days=1))
        await cluster.crash()
        await cluster.advance(timedelta(days=1, minutes=1))
        with pytest.raises(ExecutionFailed, match="TimeoutError"):
            await execution.join()

    assert farm.cancelled == {"job-1-sunrise"}
    assert 190 < farm.seen["job-1-sunrise"] < 210


async def test_an_interrupt_cancels_the_job(dsn: str) -> None:
    farm = polling.SmallFarm(looks=10_000)
    async with TestCluster(polling.Render(farm, TICK), dsn=dsn) as cluster:
        execution = await cluster.client.start(polling.Render, "sunrise")
        await eventually(lambda: farm.seen.get("job-1-sunrise", 0) > 1)
        await cluster.crash()
        await execution.interrupt()
        with pytest.raises(ExecutionInterrupted):
            await execution.join(SOON)

    assert (list(farm.jobs.values()), farm.cancelled) == (["job-1-sunrise"], {"job-1-sunrise"})


# --- subscription ---------------------------------------------------------------------------------

ADA = subscription.Subscriber(customer="ada")


async def test_each_month_is_paid_once_until_the_money_is_gone() -> None:
    bank = subscription.Accounts(ada=3 * 900)
    async for outcome in crash_at_every_step(subscription.Subscription(bank), ADA):
        assert outcome.result == "ended in month 4: not paid", outcome
        assert list(outcome.workflow.bank.charged) == ["ada/1", "ada/2", "ada/3"], outcome


async def test_months_begin_thirty_days_apart_and_a_signal_changes_the_next() -> None:
    bank = subscription.Accounts(ada=10_000)
    async with TestCluster(subscription.Subscription(bank)) as cluster:
        execution = await cluster.client.start(subscription.Subscription, ADA)
        began = cluster.clock.now()
        await cluster.advance(timedelta(days=70))
        await cluster.crash()
        await execution.signal(subscription.Subscription.change, "plus")
        await cluster.advance(timedelta(days=25))
        now = await execution.query(subscription.Subscription.current)
        assert (now.month, now.begins) == (4, began + timedelta(days=90))
        await execution.signal(subscription.Subscription.cancel)
        await cluster.settle()
        assert await execution.join() == "cancelled in month 4"

    assert list(bank.charged.values()) == [900, 900, 900, 1900]


async def test_a_signal_sent_while_the_runner_is_down_is_not_lost(dsn: str) -> None:
    bank = subscription.Accounts(ada=10_000)
    month = timedelta(days=30)
    async with TestCluster(subscription.Subscription(bank, month), dsn=dsn) as cluster:
        execution = await cluster.client.start(subscription.Subscription, ADA)
        await eventually(lambda: bank.charged)
        cluster.runner.crash()
        await execution.signal(subscription.Subscription.cancel)
        assert await execution.join(SOON) == "cancelled in month 1"

    assert bank.charged == {"ada/1": 900}


# --- agent ----------------------------------------------------------------------------------------

SCRIPT = agent.Scripted(
    agent.calling(("double", "a"), ("double", "b"), ("none", "")),
    agent.calling(("publish", "aa bb")),
    agent.Message(role="model", text="{0}, {1}, {3}; {2}"),
)
PUBLISHED = "double: aa, double: bb, publish: done; none failed: there is no such tool"
REFUSED = "double: aa, double: bb, publish: the user does not want that; none failed"


class Counted(agent.Scripted):
    """Notes the keys it is asked under."""

    def __init__(self) -> None:
        super().__init__(*SCRIPT.turns)
        self.keys: list[str] = []

    async def reply(self, messages: Sequence[agent.Message], *, key: str) -> agent.Message:
        self.keys.append(key)
        return await super().reply(messages, key=key)


async def double(text: str) -> str:
    return text * 2


async def publish(text: str) -> str:
    return "done"


TOOLS: dict[str, agent.Tool] = {"double": double, "publish": publish}


async def asks_nobody(call: agent.ToolCall) -> None:
    """Whoever is asked sees it elsewhere."""


def thinking() -> agent.Agent:
    return agent.Agent(Counted(), TOOLS, guarded=["publish"], ask=asks_nobody)


async def agree(cluster: TestCluster, execution: Execution[str]) -> None:
    while True:
        try:
            await execution.update(agent.Agent.agree, "publish(aa bb)", True)
        except UpdateRejected:
            await asyncio.sleep(0.001)
        else:
            return


async def test_the_answer_is_the_same_wherever_the_agent_is_stopped() -> None:
    async for outcome in crash_at_every_step(thinking, "?", drive=agree):
        assert outcome.result.startswith(PUBLISHED), outcome
        assert len(set(outcome.workflow.model.keys)) == 3, outcome


async def test_a_guarded_tool_waits_for_a_person_however_long_it_takes(dsn: str) -> None:
    asked: asyncio.Queue[agent.ToolCall] = asyncio.Queue()
    made = agent.Agent(Counted(), TOOLS, guarded=["publish"], ask=asked.put)
    async with TestCluster(made, dsn=dsn, suspend_after=timedelta(0)) as cluster:
        execution = await cluster.client.start(agent.Agent, "?")
        call = await asked.get()
        await cluster.crash()
        with pytest.raises(UpdateRejected, match="nobody is asked"):
            await execution.update(agent.Agent.agree, "another", True)
        await execution.update(agent.Agent.agree, call.id, False)
        assert (await execution.join(SOON)).startswith(REFUSED)


# --- crawler --------------------------------------------------------------------------------------

START = "http://site/1"
WORDS = {f"http://site/{n}": 9 if n < 4 else 7 if n == 4 else 5 for n in range(1, 9)}


def fetching(site: crawler.Site, began: list[datetime], cluster: list[TestCluster]) -> Any:
    """Asks the site itself, with a note of when."""

    async def get(url: str) -> str:
        began.extend(each.clock.now() for each in cluster)
        return site.page(urlsplit(url).path)

    return crawler.Fetch(get)


async def test_every_page_is_found_wherever_the_runner_dies() -> None:
    async for outcome in crash_at_every_step(
        crawler.Crawl(), START, lambda: fetching(crawler.Site(8), [], [])
    ):
        assert outcome.result == WORDS, outcome


async def test_two_crawls_together_ask_no_more_often_than_the_limit_says() -> None:
    site, began, clusters = crawler.Site(8), list[datetime](), list[TestCluster]()
    async with TestCluster(crawler.Crawl(), fetching(site, began, clusters)) as cluster:
        clusters.append(cluster)
        crawls = [await cluster.client.start(crawler.Crawl, START, key=f"{n}") for n in (1, 2)]
        await cluster.advance(timedelta(seconds=0.2))
        await cluster.crash()
        await cluster.advance(timedelta(seconds=10))
        assert [await each.join() for each in crawls] == [WORDS, WORDS]

    assert min(site.asked.values()) == 2
    assert min(after - before for before, after in pairwise(began)) >= timedelta(seconds=1 / 20)


async def test_a_page_that_cannot_be_had_is_asked_for_again_later() -> None:
    site, failures = crawler.Site(3), Counter({"/2": 1, "/3": 10})

    async def get(url: str) -> str:
        path = urlsplit(url).path
        failures[path] -= 1
        if failures[path] >= 0:
            raise ConnectionError("429 Too Many Requests")
        return site.page(path)

    async with TestCluster(crawler.Crawl(), crawler.Fetch(get)) as cluster:
        crawl = await cluster.client.start(crawler.Crawl, START)
        await cluster.advance(timedelta(hours=1))
        words = await crawl.join()

    assert (words["http://site/2"], words["http://site/3"]) == (5, 0)
    assert failures["/3"] == 10 - len(crawler.PAUSES)


async def test_a_crawl_over_http_goes_on_after_a_crash(dsn: str) -> None:
    site = crawler.Site(8)
    async with (
        site.served() as url,
        TestCluster(crawler.Crawl(), crawler.Fetch(crawler.over_http), dsn=dsn) as cluster,
    ):
        crawl = await cluster.client.start(crawler.Crawl, url)
        await eventually(lambda: "/3" in site.asked)
        await cluster.crash()
        words = await crawl.join(SOON)

    assert {urlsplit(page).path: n for page, n in words.items()} == {
        urlsplit(page).path: n for page, n in WORDS.items()
    }
    assert site.asked["/1"] == 1
