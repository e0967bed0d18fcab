"""What the doctor finds, judged on made-up facts and on real servers."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import psycopg
import pytest

from engine.core.ids import RunnerId, ShardId
from engine.diagnosis import Finding, Severity, clock, locks, ownership, runners, server
from engine.storage.protocol import RunnerRow, ShardRow
from engine.storage.server import ServerFacts
from tests.cli.terminal import do, outlast, served
from tests.eventually import eventually

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
TTL = timedelta(seconds=10)
WELL = ServerFacts(
    version="18.0",
    now=NOW,
    started_at=NOW - timedelta(days=1),
    standby=False,
    read_only=False,
    fsync=True,
    full_page_writes=True,
    synchronous_commit="on",
    connections=100,
    connected=10,
    lock_slots=6400,
)
ONE, TWO = RunnerId(UUID(int=1)), RunnerId(UUID(int=2))


def runner(id: RunnerId = ONE, *, beat: float = 1, version: str = "1", **types: str) -> RunnerRow:
    return RunnerRow(
        id=id,
        groups=("default",),
        host="web",
        pid=id.int,
        version=version,
        types=types or {"Fulfil": "workflow:default"},
        beat_at=NOW - timedelta(seconds=beat),
    )


def shard(number: int, owner: RunnerId | None, group: str = "default") -> ShardRow:
    return ShardRow(shard=ShardId(group, number), epoch=1, runner=owner, acquired_at=NOW)


def wrong(findings: list[Finding]) -> list[str]:
    return [finding.message for finding in findings if finding.severity is Severity.WRONG]


def noted(findings: list[Finding]) -> list[str]:
    return [finding.message for finding in findings if finding.severity is Severity.NOTE]


def test_a_server_that_is_well_has_nothing_wrong() -> None:
    findings = [*server(WELL), clock(timedelta(milliseconds=-20)), locks(WELL, 300)]

    assert {finding.severity for finding in findings} == {Severity.OK}


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (replace(WELL, standby=True), "the server is a standby"),
        (replace(WELL, read_only=True), "read-only"),
        (replace(WELL, fsync=False, full_page_writes=False), "fsync is off and full_page_writes"),
        (replace(WELL, synchronous_commit="off"), "synchronous_commit is off"),
        (replace(WELL, connected=90), "90 of 100 connections are in use"),
    ],
)
def test_a_server_that_cannot_be_relied_on_is_wrong(facts: ServerFacts, message: str) -> None:
    (found,) = [finding for finding in server(facts) if finding.severity is Severity.WRONG]

    assert message in found.message
    assert found.fix


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        (replace(WELL, oldest_transaction=NOW - timedelta(hours=3)), "open for 3.0 h"),
        (replace(WELL, oldest_prepared=NOW - timedelta(hours=3)), "a prepared transaction"),
        (replace(WELL, idle_slot="old"), "replication slot 'old'"),
    ],
)
def test_what_keeps_dead_rows_is_noted(facts: ServerFacts, message: str) -> None:
    assert message in noted(list(server(facts)))[0]


def test_clocks_that_are_apart_are_noted() -> None:
    assert "3.0 s behind" in clock(timedelta(seconds=3)).message
    assert "3.0 s ahead of" in clock(timedelta(seconds=-3)).message


def test_too_few_lock_slots_are_wrong() -> None:
    assert locks(WELL, 4000).severity is Severity.WRONG


def test_runners_that_are_silent_or_missing_are_wrong() -> None:
    live = [runner(), runner(TWO, beat=60)]

    assert wrong(list(runners(live, now=NOW, time_to_live=TTL, used=True))) == [
        "runner web:2 has given no sign of life for 60 s"
    ]
    assert wrong(list(runners([], now=NOW, time_to_live=TTL, used=True)))
    assert noted(list(runners([], now=NOW, time_to_live=TTL, used=False)))


def test_runners_that_differ_are_noted() -> None:
    live = [runner(version="1"), runner(TWO, version="2", Refund="workflow:default")]

    assert noted(list(runners(live, now=NOW, time_to_live=TTL, used=True))) == [
        "of versions 1, 2",
        "not all runners of group default serve Fulfil, Refund: what is on others' shards waits",
    ]


def test_shards_without_a_live_owner_are_wrong() -> None:
    owned = [shard(1, ONE), shard(2, ONE)]

    assert not wrong(list(ownership(owned, [runner()])))
    assert wrong(list(ownership([*owned, shard(3, None)], [runner()]))) == [
        "1 of 3 shards of group default have no live owner"
    ]
    assert wrong(list(ownership([*owned, shard(1, None, "slow")], [runner()]))) == [
        "no live runner serves group slow, whose 1 shards hold what waits"
    ]


async def test_a_served_database_is_healthy(dsn: str) -> None:
    async with served(dsn):

        async def healthy() -> bool:
            ended = await do("doctor", dsn=dsn)
            found = {line["topic"]: line["severity"] for line in ended.lines}
            assert found.pop("durability") in {"ok", "wrong"}  # the tests' server may be lax
            assert found.keys() >= {"server", "connection", "schema", "clock", "runners", "shards"}
            assert set(found.values()) == {"ok"}, found
            return True

        await eventually(healthy)


def test_what_is_wrong_comes_with_the_fix_and_exit_code_1(empty_dsn: str) -> None:
    ended = outlast("doctor", "--table", dsn=empty_dsn)

    assert ended.code == 1
    assert "schema 'engine' is not there yet" in ended.out
    assert "fix: run 'outlast migrate'" in ended.out


def test_a_lax_database_is_told(dsn: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f'alter database "{name}" set synchronous_commit = off')
        connection.execute(f'alter database "{name}" set default_transaction_read_only = on')

    ended = outlast("doctor", dsn=dsn)

    assert ended.code == 1
    findings = {line["topic"]: line for line in ended.lines}
    assert "default_transaction_read_only" in findings["role"]["message"]
    assert findings["durability"]["severity"] == "wrong"
