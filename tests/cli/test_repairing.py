"""Ending, pausing and repairing executions from a command line, one by one and many at once."""

from tests.cli.terminal import do, served
from tests.eventually import eventually


async def status(id: str, dsn: str) -> str:
    return str((await do("poll", id, dsn=dsn)).lines[0]["status"])


async def test_an_execution_is_paused_and_resumed_and_both_are_in_its_history(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn)
        pause = await do("pause", "o-1", "--reason", "stocktaking", dsn=dsn)

        async def paused() -> bool:
            return await status("o-1", dsn) == "paused"

        await eventually(paused)
        why = await do("why", "o-1", dsn=dsn)
        ls = await do("ls", "--status", "paused", dsn=dsn)
        interrupt = await do("interrupt", "o-1", "--table", dsn=dsn)
        resume = await do("resume", "Fulfil/o-1", "--table", dsn=dsn)
        await do("join", "o-1", dsn=dsn)
        late = await do("pause", "o-1", "--table", dsn=dsn)
        history = await do("history", "o-1", dsn=dsn)
        show = await do("show", "o-1", "--table", dsn=dsn)

    assert pause.lines == [{"id": "Fulfil/o-1", "paused": True}]
    assert "stocktaking: 'outlast resume Fulfil/o-1' lets it go on" in str(why.lines[0]["why"])
    assert [line["id"] for line in ls.lines] == ["Fulfil/o-1"]
    assert "it is paused, and ends once it is not" in interrupt.err
    assert resume.out == "Fulfil/o-1 is resumed\n"
    assert late.out == "Fulfil/o-1 had ended before\n"
    orders = {line["kind"]: line["payload"] for line in history.lines if "by" in str(line)}
    assert orders["paused"]["reason"] == "stocktaking"
    assert orders.keys() == {"paused", "resumed", "interrupt"}
    assert all("@" in payload["by"] for payload in orders.values())
    assert "stocktaking" in show.out


async def test_a_workflow_is_paused_and_resumed_by_its_name(dsn: str) -> None:
    async with served(dsn):
        pause = await do("pause", "Fulfil", "-r", "deploy", "--table", dsn=dsn)
        again = await do("pause", "Fulfil", dsn=dsn)
        await do("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn)
        await do("resolve", "o-1", "approved", "true", dsn=dsn)
        timeout = await do("join", "o-1", "--timeout", "300ms", dsn=dsn)
        ls = await do("ls", "--table", dsn=dsn)
        resume = await do("resume", "Fulfil", "--table", dsn=dsn)
        join = await do("join", "o-1", "--timeout", "10s", dsn=dsn)
        nothing = await do("resume", "Fulfil", "--table", dsn=dsn)
        unknown = await do("pause", "Fulfill", dsn=dsn)

    assert pause.out == "all executions of Fulfil are paused\n"
    assert again.lines == [{"id": "Fulfil", "paused": False}]
    assert timeout.code == 4
    assert "its workflow is paused" in " ".join(ls.out.split())
    assert resume.out == "all executions of Fulfil are resumed\n"
    assert join.out == '"hold-1, paid 100"\n'
    assert nothing.out == "Fulfil was not paused\n"
    assert unknown.code == 3


async def test_many_are_ended_by_a_filter_after_a_dry_run(dsn: str) -> None:
    async with served(dsn):
        for key, shop in (("a-1", "a"), ("a-2", "a"), ("b-1", "b")):
            request = f'{{"id": "{key}"}}'
            await do("start", "Fulfil", request, "-k", key, "-a", f"shop={shop}", dsn=dsn)
        terminate = ("terminate", "--workflow", "Fulfil", "--attribute", "shop=a")
        dry = await do(*terminate, "--dry-run", dsn=dsn)
        seen = await do(*terminate, "--dry-run", "--table", dsn=dsn)
        done = await do(*terminate, "--rate", "500", "--reason", "closed", dsn=dsn)
        join = await do("join", "a-1", dsn=dsn)
        other = await status("b-1", dsn)
        refused = await do("terminate", "--status", "failed", dsn=dsn)
        nothing = await do("terminate", dsn=dsn)
        both = await do("terminate", "a-1", "--workflow", "Fulfil", dsn=dsn)

    ids = [line["id"] for line in dry.lines]
    assert ids == ["Fulfil/a-2", "Fulfil/a-1"]
    assert [line["terminated"] for line in dry.lines] == [False, False]
    assert seen.out.splitlines()[-1] == "2 match: nothing was done"
    assert [line["terminated"] for line in done.lines] == [True, True]
    assert "2 terminated" in done.err
    assert (join.code, "closed" in join.err) == (5, True)
    assert other != "terminated"
    assert (refused.code, nothing.code, both.code) == (2, 2, 2)
    assert "terminate has no effect on what is failed" in refused.err


async def test_failed_ones_are_listed_and_retried_by_their_error(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Broken", '"be"', "--key", "b-1", dsn=dsn)
        await do("join", "b-1", dsn=dsn)
        ls = await do("ls", "--error", "ValueError", "--started-after", "1h", dsn=dsn)
        other = await do("ls", "--error", "KeyError", dsn=dsn)
        old = await do("ls", "--started-before", "1h", dsn=dsn)
        retry = await do("retry", "--error", "ValueError", "--table", dsn=dsn)
        await do("join", "b-1", dsn=dsn)
        history = await do("history", "b-1", dsn=dsn)

    assert [line["id"] for line in ls.lines] == ["Broken/b-1"]
    assert (other.lines, old.lines) == ([], [])
    assert retry.out == "1 retried\n"
    repaired = [line for line in history.lines if line["kind"] == "repaired"]
    assert [("@" in each["payload"]["by"], each["payload"]["of"]) for each in repaired] == [
        (True, "Broken/b-1")
    ]


async def test_what_has_ended_is_pruned_by_a_filter_after_a_dry_run(dsn: str) -> None:
    async with served(dsn):
        for key in ("b-1", "b-2"):
            await do("start", "Broken", '"be"', "--key", key, dsn=dsn)
            await do("join", key, dsn=dsn)
        await do("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn)
        young = await do("prune", "--older-than", "1h", dsn=dsn)
        dry = await do("prune", "--error", "ValueError", "--dry-run", dsn=dsn)
        done = await do("prune", "--older-than", "0s", "--limit", "1", dsn=dsn)
        rest = await do("prune", "--workflow", "Broken", "--table", dsn=dsn)
        ls = await do("ls", dsn=dsn)
        gone = await do("poll", "b-1", dsn=dsn)
        nothing = await do("prune", dsn=dsn)
        live = await do("prune", "--status", "running", dsn=dsn)

    assert young.lines == []
    assert [line["id"] for line in dry.lines] == ["Broken/b-2", "Broken/b-1"]
    assert [(line["id"], line["pruned"]) for line in done.lines] == [("Broken/b-2", True)]
    assert rest.out == "1 pruned\n"
    assert [line["id"] for line in ls.lines] == ["Fulfil/o-1"]
    assert (gone.code, nothing.code, live.code) == (3, 2, 2)
