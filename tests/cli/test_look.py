"""Looking at executions, in tables and in JSON, on a database with some of each kind."""

import asyncio
from datetime import timedelta

import pytest

from engine import Client, Status
from tests.cli.orders import Broken, Fulfil, Order, Slow
from tests.cli.terminal import Ended, do, outlast, served
from tests.eventually import eventually

SECONDS = timedelta(seconds=10)


@pytest.fixture
async def shop(dsn: str) -> str:
    """One order done, one waiting, one broken; its runner has left."""
    async with served(dsn) as client:
        await _fill(client)
    return dsn


async def _fill(client: Client) -> None:
    done = await client.start(Fulfil, Order(id="o-1"), key="o-1", attributes={"tenant": "blue"})
    waits = await client.start(Fulfil, Order(id="o-2"), key="o-2", attributes={"tenant": "red"})
    broken = await client.start(Broken, "be", key="b-1")
    await done.resolve(Fulfil.approved, True)
    await done.join(SECONDS)
    with pytest.raises(Exception, match="cannot be"):
        await broken.join(SECONDS)

    async def suspended() -> bool:
        return (await waits.describe()).status is Status.SUSPENDED

    await eventually(suspended)


async def test_ls_lists_the_youngest_first_and_filters(shop: str) -> None:
    async def ids(*options: str) -> list[str]:
        ended = await do("ls", *options, dsn=shop)
        assert (ended.code, ended.err) == (0, "")
        return [line["id"] for line in ended.lines]

    assert await ids() == ["Broken/b-1", "Fulfil/o-2", "Fulfil/o-1"]
    assert await ids("--limit", "1") == ["Broken/b-1"]
    assert await ids("--after", "b-1") == ["Fulfil/o-2", "Fulfil/o-1"]
    assert await ids("--workflow", "Broken") == ["Broken/b-1"]
    assert await ids("--workflow", "Nope") == []
    assert await ids("--status", "failed", "--status", "suspended") == ["Broken/b-1", "Fulfil/o-2"]
    assert await ids("--attribute", "tenant=blue") == ["Fulfil/o-1"]


async def test_ls_says_on_a_terminal_what_each_waits_for_or_died_of(shop: str) -> None:
    ended = await do("ls", "--table", "-n", "3", dsn=shop)

    head, broken, waits, done = [line.split() for line in ended.out.splitlines()]
    assert head == ["EXECUTION", "STATUS", "CREATED", "TOOK", "WHY"]
    assert (broken[:2], broken[-3:]) == (["Broken/b-1", "failed"], ["ValueError:", "cannot", "be"])
    assert (waits[:2], done[:2]) == (["Fulfil/o-2", "suspended"], ["Fulfil/o-1", "succeeded"])
    assert "nobody owns its shard" in " ".join(waits)
    assert "--after Fulfil/o-1" in ended.err


async def test_a_narrow_terminal_loses_no_column(
    shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "30")

    lines = (await do("ls", "--table", dsn=shop)).out.splitlines()

    assert lines[0].split() == ["EXECUTION", "STATUS", "CREATED", "TOOK", "WHY"]
    assert lines[1].startswith("Broken/b-1  failed ")
    assert "ValueErro…" in lines[1]


async def test_show_draws_what_has_ended(shop: str) -> None:
    ended = await do("show", "Fulfil/o-1", "--table", dsn=shop)

    assert ended.code == 0
    assert ended.out.startswith("Fulfil/o-1  succeeded\n")
    facts = dict(line.split(maxsplit=1) for line in ended.out.splitlines()[2:9])
    assert facts["attempts"].strip() == "3 attempts of 2 steps"
    assert facts["request"].strip() == '{"id": "o-1", "cents": 100}'
    assert facts["result"].strip() == '"hold-1, paid 100"'
    for expected in (
        "✓ call Stock/blue reserve",
        "✓ deferred approved",
        "✓ charge",
        "2 attempts",
        "ConnectionError: the gateway is away",
    ):
        assert expected in " ".join(ended.out.split())


async def test_show_says_what_is_waited_for_and_how_to_go_on(shop: str) -> None:
    ended = await do("show", "o-2", "--table", dsn=shop)

    assert "Fulfil/o-2  suspended" in ended.out
    assert "nobody owns its shard" in ended.out
    assert "outlast resolve Fulfil/o-2 approved JSON" in ended.out
    assert "… deferred approved" in ended.out


async def test_show_leads_from_an_error_to_the_users_line(shop: str) -> None:
    ended = await do("show", "b-1", "--table", dsn=shop)

    assert "caused by ValueError: cannot be" in ended.out
    assert "orders.py, line" in ended.out.replace("\n", "")
    assert 'raise ValueError(f"cannot {what}")' in ended.out
    assert "/engine/workflow" not in ended.out


async def test_show_is_one_json_object_when_piped(shop: str) -> None:
    (shown,) = (await do("show", "o-1", dsn=shop)).lines

    assert (shown["id"], shown["status"], shown["result"]) == (
        "Fulfil/o-1",
        "succeeded",
        "hold-1, paid 100",
    )
    assert shown["request"] == {"id": "o-1", "cents": 100}
    assert shown["attributes"] == {"tenant": "blue"}
    assert [event["kind"] for event in shown["history"] if event["name"] == "charge"] == [
        "attempt",
        "step",
    ]


async def test_why_is_one_sentence(shop: str) -> None:
    shown = await do("why", "o-2", "--table", dsn=shop)
    (piped,) = (await do("why", "o-2", dsn=shop)).lines

    assert shown.out.startswith("Fulfil/o-2, suspended: nobody owns its shard default:")
    assert "waits for deferred approved" in shown.out
    assert "it waits for deferred approved" in piped["why"]


async def test_history_and_tail_print_the_journal(shop: str) -> None:
    history = await do("history", "o-1", dsn=shop)
    tail = await do("tail", "o-1", dsn=shop)
    table = await do("history", "o-1", "--table", dsn=shop)
    followed = await do("tail", "o-1", "--table", dsn=shop)

    assert history.lines == tail.lines
    assert [line["position"] for line in history.lines] == sorted(
        line["position"] for line in history.lines
    )
    assert len(table.out.splitlines()) == len(history.lines) + 1
    assert followed.out.splitlines()[-1] == "Fulfil/o-1 has ended: it succeeded"


async def test_tail_follows_until_the_execution_ends(dsn: str) -> None:
    async with served(dsn) as client:
        execution = await client.start(Slow, 0.5, key="s-1")
        tail = asyncio.create_task(do("tail", "s-1", dsn=dsn))
        await execution.join(SECONDS)
        ended = await tail

    assert [line["name"] for line in ended.lines] == ["work"]


async def test_poll_says_what_has_become_of_it(shop: str) -> None:
    (done,) = (await do("poll", "o-1", dsn=shop)).lines
    (broken,) = (await do("poll", "b-1", dsn=shop)).lines
    shown = await do("poll", "b-1", "--table", dsn=shop)

    assert done["result"] == "hold-1, paid 100"
    assert broken["error"]["cause"]["message"] == "cannot be"
    assert shown.out.startswith("Broken/b-1, failed: StepFailed: ")


async def test_a_key_of_several_workflows_must_be_told_apart(dsn: str) -> None:
    async with served(dsn) as client:
        await client.start(Broken, "be", key="x")
        await client.start(Slow, 0, key="x")
        await client.start(Slow, 0, key="a/b")

    ambiguous = await do("why", "x", dsn=dsn)

    assert ambiguous.code == 2
    assert "several executions; name one of them: Broken/x, Slow/x" in ambiguous.err
    assert (await do("why", "Slow/x", dsn=dsn)).code == 0
    assert (await do("why", "a/b", dsn=dsn)).lines[0]["id"] == "Slow/a/b"


async def test_runners_and_shards_show_who_owns_what(dsn: str) -> None:
    async with served(dsn):

        async def owned() -> bool:
            shards = await do("shards", dsn=dsn)
            return all(line["runner"] for line in shards.lines) and len(shards.lines) == 4

        await eventually(owned)
        (runner,) = (await do("runners", dsn=dsn)).lines
        table = await do("runners", "--table", dsn=dsn)
        shards = await do("shards", "--table", dsn=dsn)
        every = await do("shards", "--table", "--all", dsn=dsn)

    assert (runner["state"], runner["shards"]) == ("live", 4)
    assert runner["types"]["Fulfil"] == "workflow:default:1"
    assert "Broken, Fulfil, Held" in table.out
    assert shards.out.splitlines()[0] == "default  4 shards"
    assert shards.out.splitlines()[-1] == "1 AAAA"
    assert len(every.out.splitlines()) == 5
    gone = await do("runners", "--all", dsn=dsn)
    assert [line["state"] for line in gone.lines] == ["ended"]
    assert "no runner is live" in (await do("runners", "--table", dsn=dsn)).out


def test_an_empty_database_is_said_to_be_empty(dsn: str) -> None:
    assert outlast("ls", dsn=dsn) == Ended(0, "", "")
    assert "no executions yet" in outlast("ls", "--table", dsn=dsn).out
    assert "no executions match" in outlast("ls", "--table", "-w", "Nope", dsn=dsn).out
    assert "there are no shards yet" in outlast("shards", "--table", dsn=dsn).out
