"""Acting on executions by name and JSON, as one who has not got their code."""

import json

import psycopg

from tests.cli.terminal import do, served
from tests.eventually import eventually


async def status(id: str, dsn: str) -> str:
    return str((await do("poll", id, dsn=dsn)).lines[0]["status"])


async def test_start_resolve_and_join_by_name(dsn: str) -> None:
    async with served(dsn):
        start = await do("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn)
        again = await do("start", "Fulfil", '{ "id":"o-1" }', "--key", "o-1", dsn=dsn)
        resolve = await do("resolve", "o-1", "approved", "true", dsn=dsn)
        late = await do("resolve", "o-1", "approved", "false", dsn=dsn)
        join = await do("join", "o-1", "--timeout", "10s", dsn=dsn)

    (started,) = start.lines
    assert (started["id"], started["created"]) == ("Fulfil/o-1", True)
    assert again.lines == [started | {"created": False}]
    assert resolve.lines == [{"id": "Fulfil/o-1", "deferred": "approved", "resolved": True}]
    assert (late.code, late.out) == (1, "")
    assert "was resolved or rejected before" in late.err
    assert (join.code, join.out) == (0, '"hold-1, paid 100"\n')


async def test_join_of_a_failure_is_exit_code_1(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Broken", '"be"', "--key", "b-1", dsn=dsn)
        join = await do("join", "b-1", dsn=dsn)

    assert (join.code, join.out) == (1, "")
    assert "Broken/b-1 failed" in join.err
    assert "ValueError: cannot be" in join.err


async def test_one_that_failed_can_be_started_again(dsn: str) -> None:
    async with served(dsn):
        for option in ([], [], ["--restart-failed"]):
            await do("start", "Broken", '"be"', "--key", "b-1", *option, dsn=dsn)
            await do("join", "b-1", dsn=dsn)
        show = await do("show", "b-1", dsn=dsn)

    assert show.lines[0]["run"] == 2


async def test_join_of_an_interrupted_one_is_exit_code_5(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn)
        asked = await do("interrupt", "o-1", "--reason", "not wanted", dsn=dsn)
        join = await do("join", "o-1", dsn=dsn)
        again = await do("interrupt", "o-1", "--table", dsn=dsn)

    assert asked.lines == [{"id": "Fulfil/o-1", "interrupted": True}]
    assert (join.code, join.err) == (5, "outlast: Fulfil/o-1 was interrupted: not wanted\n")
    assert (again.code, again.out) == (0, "Fulfil/o-1 had ended before\n")


async def test_join_gives_up_with_exit_code_4(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn)
        join = await do("join", "o-1", "--timeout", "50ms", dsn=dsn)

    assert (join.code, join.out) == (4, "")
    assert "has not ended within 50ms: " in join.err


async def test_a_rejection_fails_the_wait(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn)
        reject = await do("reject", "o-1", "approved", "too dear", "--table", dsn=dsn)
        join = await do("join", "o-1", dsn=dsn)

    assert reject.out == "rejected approved of Fulfil/o-1\n"
    assert (join.code, "too dear" in join.err) == (1, True)


async def test_a_request_that_does_not_fit_is_refused_and_its_key_stays_free(dsn: str) -> None:
    async with served(dsn):
        wrong = await do("start", "Fulfil", '{"name": "o-1"}', "--key", "o-1", dsn=dsn)
        right = await do("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn)
        other = await do("start", "Fulfil", '{"name": "o-1"}', "--key", "o-1", dsn=dsn)

    assert (other.code, "was started before with another request" in other.err) == (1, True)
    assert wrong.code == 1
    assert "nothing is stored: the request of Fulfil does not validate" in wrong.err
    assert (right.code, right.lines[0]["created"]) == (0, True)


async def test_a_resolution_that_does_not_fit_is_refused_and_the_right_one_still_counts(
    dsn: str,
) -> None:
    async with served(dsn):
        await do("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn)
        misspelt = await do("resolve", "o-1", "aproved", "true", dsn=dsn)
        wrong = await do("resolve", "o-1", "approved", '"perhaps"', dsn=dsn)
        reject = await do("reject", "o-1", "aproved", "no", dsn=dsn)
        right = await do("resolve", "o-1", "approved", "true", dsn=dsn)
        join = await do("join", "o-1", dsn=dsn)

    assert misspelt.code == wrong.code == reject.code == 1
    for refused in (misspelt, reject):
        assert "nothing is stored: Fulfil has no deferred named 'aproved'" in refused.err
        assert "it has approved" in refused.err
    assert "nothing is stored: deferred Fulfil.approved does not validate" in wrong.err
    assert (right.code, join.code, join.out) == (0, 0, '"hold-1, paid 100"\n')


async def test_a_resolution_that_no_runner_can_check_is_stored(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn)

        async def suspended() -> bool:
            return await status("o-1", dsn) == "suspended"

        await eventually(suspended)
    misspelt = await do("resolve", "o-1", "aproved", "true", dsn=dsn)
    resolve = await do("resolve", "o-1", "approved", "true", dsn=dsn)
    async with served(dsn):
        join = await do("join", "o-1", dsn=dsn)

    assert (resolve.code, join.code) == (0, 0)
    assert resolve.err == "note: no runner could say whether it fits; it is stored as it is\n"
    assert "waits for approved, not for aproved" in misspelt.err


async def test_a_later_start_waits_for_its_time(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Slow", "0", "--key", "s-1", "--delay", "1h", dsn=dsn)
        await do("start", "Slow", "0", "--key", "s-2", "--at", "2099-01-01T00:00Z", dsn=dsn)
        await do("start", "Slow", "0", "--key", "s-3", "--at", "2001-01-01T00:00Z", dsn=dsn)
        assert (await do("join", "s-3", dsn=dsn)).out == '"done"\n'

        assert await status("s-1", dsn) == await status("s-2", dsn) == "scheduled"
        why = await do("why", "s-2", "--table", dsn=dsn)
        show = await do("show", "s-2", "--table", dsn=dsn)
        listed = {row["id"]: row for row in (await do("ls", dsn=dsn)).lines}

    assert listed["Slow/s-2"]["wake_at"] == "2099-01-01T00:00:00Z"
    assert listed["Slow/s-2"]["why"] == "it is to start at 2099-01-01T00:00:00+00:00"
    assert listed["Slow/s-3"]["wake_at"] is None
    assert "it is to start at 2099-01-01 00:00:00Z" in why.out
    assert "starts   2099-01-01 00:00:00Z" in show.out


async def test_a_start_takes_attributes_and_reads_standard_input(dsn: str) -> None:
    async with served(dsn):
        options = ["--attribute", "tenant=blue", "-a", "size=3", "-a", "odd=[1"]
        start = await do("start", "Slow", "-", "-k", "s-1", *options, dsn=dsn, stdin=" 0 \n")
        (listed,) = (await do("ls", "--attribute", "size=3", dsn=dsn)).lines

    assert start.code == 0
    assert listed["attributes"] == {"tenant": "blue", "size": 3, "odd": "[1"}


async def test_the_same_key_with_another_request_is_refused(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Slow", "0", "--key", "s-1", dsn=dsn)
        other = await do("start", "Slow", "1", "--key", "s-1", dsn=dsn)

    assert other.code == 1
    assert "Slow/s-1 was started before with another request" in other.err


async def test_a_workflow_that_nobody_serves_is_named_with_what_is(dsn: str) -> None:
    async with served(dsn):
        unknown = await do("start", "Fulfill", "{}", "--key", "1", dsn=dsn)
        entity = await do("start", "Stock", "{}", "--key", "1", dsn=dsn)

    assert unknown.code == entity.code == 3
    assert "'Fulfill'; served now: Broken, Fulfil, Held, Slow" in unknown.err
    assert "Stock is of kind entity" in entity.err
    nobody = await do("start", "Fulfil", "{}", "--key", "1", dsn=dsn)
    assert (nobody.code, "start one with 'outlast run APP'" in nobody.err) == (3, True)


async def test_a_workflow_with_executions_may_be_started_while_nobody_serves_it(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Slow", "0", "--key", "s-1", dsn=dsn)
        await do("join", "s-1", dsn=dsn)

    start = await do("start", "Slow", "0", "--key", "s-2", "--table", dsn=dsn)

    assert (start.code, start.out) == (0, "started Slow/s-2\n")
    assert "no live runner serves Slow; it begins as soon as one does" in start.err
    async with served(dsn):
        assert (await do("join", "s-2", "--timeout", "10s", dsn=dsn)).out == '"done"\n'


async def test_results_are_indented_on_a_terminal(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Slow", "0", "--key", "s-1", dsn=dsn)
        join = await do("join", "s-1", "--table", dsn=dsn)

    assert json.loads(join.out) == "done"


async def test_a_blocked_execution_goes_on_when_it_is_retried(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Fulfil", '{"id": "o-1"}', "--key", "o-1", dsn=dsn)
        too_early = await do("retry", "o-1", dsn=dsn)
    with psycopg.connect(dsn) as connection:  # as if it had killed ten runners
        connection.execute("update engine.executions set failures = 10")
    async with served(dsn):
        await do("resolve", "o-1", "approved", "true", dsn=dsn)

        async def blocked() -> bool:
            return await status("o-1", dsn) == "blocked"

        await eventually(blocked)
        (why,) = (await do("why", "o-1", dsn=dsn)).lines
        retry = await do("retry", "o-1", dsn=dsn)
        join = await do("join", "o-1", "--timeout", "10s", dsn=dsn)
        too_late = await do("retry", "o-1", dsn=dsn)

    assert "lost 10 times" in why["why"]
    assert "'outlast retry Fulfil/o-1'" in why["why"]
    assert retry.lines == [{"id": "Fulfil/o-1", "retried": True}]
    assert (join.code, join.out) == (0, '"hold-1, paid 100"\n')
    assert (too_early.code, too_late.code) == (1, 1)
    assert "Fulfil/o-1 goes on anyway" in too_early.err


async def test_a_failed_one_is_retried_and_forked(dsn: str) -> None:
    async with served(dsn):
        await do("start", "Broken", '"be"', "--key", "b-1", dsn=dsn)
        await do("join", "b-1", dsn=dsn)
        retry = await do("retry", "b-1", "--table", dsn=dsn)
        again = await do("join", "b-1", dsn=dsn)
        fork = await do("fork", "b-1", "explode", "--key", "b-2", dsn=dsn)
        forked = await do("join", "b-2", dsn=dsn)
        taken = await do("fork", "b-1", "explode", "--key", "b-2", dsn=dsn)
        unknown = await do("fork", "b-1", "explore", "--key", "b-3", dsn=dsn)

    assert retry.out == "Broken/b-1 goes on; 'outlast join Broken/b-1' waits for its result\n"
    assert (again.code, "cannot be" in again.err) == (1, True)
    assert fork.lines == [{"id": "Broken/b-2", "forked_from": "Broken/b-1", "step": "explode"}]
    assert (forked.code, "Broken/b-2 failed" in forked.err) == (1, True)
    assert (taken.code, "was started before" in taken.err) == (1, True)
    assert (unknown.code, "no step 'explore'; it has explode" in unknown.err) == (3, True)
