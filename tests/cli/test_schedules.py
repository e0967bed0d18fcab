"""Crons from the command line: listed, shown, paused, resumed, triggered, made up for."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from typing import Any

import pytest

from engine import Client, Cron, Overlap, Runner
from tests.cli.orders import Stock
from tests.cli.terminal import Ended, do, outlast, settings
from tests.eventually import eventually


class Nightly(Cron):
    """Far away; one at a time; ``gate`` lets it end."""

    schedule = "30 2 1 1 *"
    timezone = "Europe/Berlin"
    skip_if_older_than = timedelta(minutes=30)

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()

    async def run(self, at: datetime) -> None:
        await self.gate.wait()


class Failing(Cron):
    schedule = "0 3 1 1 *"
    overlap = Overlap.BUFFER_ONE

    async def run(self, at: datetime) -> None:
        raise LookupError("no paper")


@asynccontextmanager
async def kept(dsn: str, *crons: Cron) -> AsyncGenerator[Client]:
    """A runner in this process that keeps crons."""
    async with Runner(settings(dsn)).register(Stock(), *crons) as runner:

        async def known() -> bool:
            return len(await runner.client.schedules()) == len(crons)

        await eventually(known)
        yield runner.client


async def listed(dsn: str) -> dict[str, Any]:
    ended = await do("schedules", dsn=dsn)
    assert (ended.code, ended.err) == (0, "")
    return {line["name"]: line for line in ended.lines}


async def test_crons_are_listed_by_name_with_their_rules(dsn: str) -> None:
    async with kept(dsn, Nightly(), Failing()):
        lines = await listed(dsn)

    assert list(lines) == ["Failing", "Nightly"]
    nightly = lines["Nightly"]
    assert nightly["next_at"].endswith("-01-01T01:30:00Z")
    assert nightly["runner"] is not None
    told = {
        "schedule": "30 2 1 1 *",
        "timezone": "Europe/Berlin",
        "starts": "run()",
        "state": "idle",
        "overlap": "skip",
        "catch_up": 86400,
        "skip_if_older_than": 1800,
        "paused": False,
        "backfill": [],
    }
    assert {name: nightly[name] for name in told} == told


async def test_without_crons_there_is_nothing_to_list(dsn: str) -> None:
    assert await listed(dsn) == {}
    assert "no crons yet" in (await do("schedules", "--table", dsn=dsn)).out


async def test_a_cron_without_a_live_runner_is_still_listed(dsn: str) -> None:
    async with kept(dsn, Nightly()):
        pass

    assert (await listed(dsn))["Nightly"]["state"] == "unowned"


async def test_a_paused_cron_says_why_until_it_is_resumed(dsn: str) -> None:
    async with kept(dsn, Nightly()):
        paused = await do("schedules", "pause", "Nightly", "--reason", "moving house", dsn=dsn)
        shown = (await listed(dsn))["Nightly"]
        table = await do("schedules", "show", "Nightly", "--table", dsn=dsn)
        resumed = await do("schedules", "resume", "Nightly", dsn=dsn)
        after = (await listed(dsn))["Nightly"]

    assert paused.lines == [{"name": "Nightly", "paused": True}]
    assert (shown["state"], shown["reason"], shown["next_at"]) == ("paused", "moving house", None)
    assert "paused: moving house" in table.out
    assert resumed.lines == [{"name": "Nightly", "paused": False}]
    assert (after["state"], after["reason"]) == ("idle", "")


async def test_a_trigger_runs_it_and_two_of_one_id_run_it_once(dsn: str) -> None:
    async with kept(dsn, Nightly()) as client:
        first = await do("schedules", "trigger", "Nightly", "--id", "once", dsn=dsn)
        again = await do("schedules", "trigger", "Nightly", "--id", "once", dsn=dsn)
        await eventually(lambda: _ended(client, Nightly, 1))
        (shown,) = (await do("schedules", "show", "Nightly", dsn=dsn)).lines

    assert again.lines == first.lines
    assert (first.lines[0]["state"], first.lines[0]["manual"]) == ("running", True)
    (fire,) = shown["fires"]
    assert (fire["state"], fire["manual"]) == ("succeeded", True)
    assert fire["request_id"] == first.lines[0]["request_id"]


async def _ended(client: Client, cron: type[Cron], number: int) -> bool:
    return sum(fire.exit is not None for fire in await client.schedule(cron).fires()) == number


async def test_a_trigger_that_is_left_out_is_exit_code_1(dsn: str) -> None:
    async with kept(dsn, nightly := Nightly()):
        nightly.gate.clear()
        first = await do("schedules", "trigger", "Nightly", "--table", dsn=dsn)
        running = (await listed(dsn))["Nightly"]
        second = await do("schedules", "trigger", "Nightly", dsn=dsn)
        nightly.gate.set()

    assert (first.code, first.out.startswith("Nightly runs for")) == (0, True)
    assert (running["state"], len(running["running"])) == ("running", 1)
    assert second.code == 1
    assert "Nightly was not started (overlapped)" in second.err


async def test_a_failed_run_is_shown_with_its_error(dsn: str) -> None:
    async with kept(dsn, Failing()) as client:
        await do("schedules", "trigger", "Failing", dsn=dsn)
        await eventually(lambda: _ended(client, Failing, 1))
        (shown,) = (await do("schedules", "show", "Failing", dsn=dsn)).lines
        table = await do("schedules", "show", "Failing", "--table", dsn=dsn)

    assert [fire["state"] for fire in shown["fires"]] == ["failed"]
    assert "LookupError: no paper" in table.out


async def test_a_backfill_says_how_many_instants_it_has(dsn: str) -> None:
    async with kept(dsn, Nightly()) as client:
        years = "2021-01-01T00:00Z", "2023-12-31T00:00Z"
        ended = await do("schedules", "backfill", "Nightly", *years, dsn=dsn)
        await eventually(lambda: _ended(client, Nightly, 3))
        (shown,) = (await do("schedules", "show", "Nightly", dsn=dsn)).lines

    assert ended.lines == [{"name": "Nightly", "instants": 3}]
    assert [fire["instant"] for fire in shown["fires"]] == [
        f"{year}-01-01T01:30:00Z" for year in (2023, 2022, 2021)
    ]


async def test_a_backfill_backwards_is_a_wrong_use(dsn: str) -> None:
    backwards = "2023-01-01T00:00Z", "2022-01-01T00:00Z"
    ended = await do("schedules", "backfill", "Nightly", *backwards, dsn=dsn)

    assert ended.code == 2
    assert "write FROM, then TO" in ended.err


@pytest.mark.parametrize("command", ["show", "pause", "resume", "trigger"])
async def test_an_unknown_cron_is_exit_code_3(dsn: str, command: str) -> None:
    ended = await do("schedules", command, "Yearly", dsn=dsn)

    assert ended.code == 3
    assert "no runner has registered a cron named 'Yearly'" in ended.err


async def test_what_no_runner_does_in_time_is_exit_code_4_and_done_later(dsn: str) -> None:
    async with kept(dsn, Nightly()):
        pass
    ended = await do("schedules", "pause", "Nightly", "--timeout", "200ms", dsn=dsn)
    async with kept(dsn, Nightly()) as client:

        async def paused() -> bool:
            return (await client.schedule(Nightly).describe()).paused

        assert await eventually(paused)

    assert ended.code == 4
    assert "it is stored, and done as soon as one keeps Nightly" in ended.err


async def test_tables_fit_a_terminal(dsn: str) -> None:
    async with kept(dsn, Nightly(), Failing()):
        listing = await do("schedules", "--table", dsn=dsn)
        shown = await do("schedules", "show", "Nightly", "--table", dsn=dsn)

    head, failing, nightly = listing.out.splitlines()
    assert head.split() == ["NAME", "SCHEDULE", "ZONE", "STATE", "NEXT", "LAST", "STARTS"]
    assert failing.split()[0] == "Failing"
    assert "30 2 1 1 *" in nightly
    assert "Europe/Berlin" in nightly
    assert "no instant has come yet" in shown.out
    assert "at most 30m late" in shown.out


def test_help_names_the_commands() -> None:
    ended: Ended = outlast("schedules", "--help")

    assert ended.code == 0
    for command in ("show", "pause", "resume", "trigger", "backfill"):
        assert command in ended.out
