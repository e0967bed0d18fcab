"""Messages: stored before they are delivered, run once for one key, never early, answered once."""

import asyncio
import logging
from datetime import timedelta
from functools import partial
from statistics import median

import pytest

from engine import PayloadConflict, RequestFailed
from tests.cluster.cast import Single
from tests.cluster.characters import Courier
from tests.cluster.live import Live
from tests.eventually import eventually

log = logging.getLogger(__name__)
pytestmark = pytest.mark.asyncio(loop_scope="session")
TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


async def test_a_request_is_answered_whoever_sends_it_and_wherever_it_is_handled(
    live: Live,
) -> None:
    ids = live.names(10)

    async def ask_from_here(id: str) -> None:
        assert await live.client.entity(Single, id).echo(f"to {id}") == f"to {id}"

    async def ask_from_each_runner(id: str) -> None:
        for runner in live.runners:
            command = {"entity": "Single", "entity_id": id, "method": "echo", "args": [id]}
            assert await runner.ask("call", **command) == id

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for id in ids:
            group.create_task(ask_from_here(id))
            group.create_task(ask_from_each_runner(id))


async def test_a_message_that_was_told_is_handled_although_its_sender_is_gone(live: Live) -> None:
    id = live.name()
    async with live.another_client() as gone:
        await gone.tell(gone.entity(Single, id).note, "told")
    assert await live.noted(id, 1) == ["told"]


async def test_calls_with_one_key_run_once_and_share_the_reply_among_all_processes(
    live: Live,
) -> None:
    id, key = live.name(), live.name("key")
    command = {"entity": "Single", "entity_id": id, "method": "note", "args": ["once"], "key": key}
    async with asyncio.timeout(30), live.another_client() as other:
        answers = await asyncio.gather(
            *(live.client.entity(Single, id, key=key).note("once") for _ in range(5)),
            *(other.entity(Single, id, key=key).note("once") for _ in range(5)),
            *(runner.ask("call", **command) for runner in live.runners for _ in range(5)),
        )
        late = await other.entity(Single, id, key=key).note("once")
    assert {*answers, late} == {answers[0]}
    assert await live.notes(id) == ["once"]


async def test_a_key_computed_from_the_arguments_deduplicates_too(live: Live) -> None:
    id = live.name()
    entity = live.client.entity(Single, id)
    async with asyncio.timeout(30):
        await asyncio.gather(*(entity.note_once("a") for _ in range(10)), entity.note_once("b"))
    assert sorted(await live.notes(id)) == ["a", "b"]


async def test_a_key_that_was_used_is_refused_to_another_payload_in_every_process(
    live: Live,
) -> None:
    id, key = live.name(), live.name("key")
    gate = live.name("gate")
    command = {"entity": "Single", "entity_id": id, "method": "wait_at", "args": ["x"], "key": key}
    async with asyncio.timeout(30), live.another_client() as other:
        await other.tell(other.entity(Single, id, key=key).wait_at, gate)

        async def refused() -> None:
            with pytest.raises(PayloadConflict, match="other arguments"):
                await live.client.entity(Single, id, key=key).wait_at("elsewhere")
            for runner in live.runners:
                with pytest.raises(AssertionError, match="PayloadConflict"):
                    await runner.ask("call", **command)

        await refused()
        await live.open(gate)
        await live.client.entity(Single, id, key=key).wait_at(gate)
        await refused()
    assert await live.notes(id) == [f"begins {gate}", f"ends {gate}"]


async def test_a_scheduled_message_is_never_early_by_the_databases_clock(live: Live) -> None:
    id = live.name()
    now = await live.database.fetchval("select clock_timestamp()")
    due = {f"{n}": now + timedelta(milliseconds=300 + 25 * n) for n in range(20)}
    async with asyncio.timeout(30):
        await asyncio.gather(
            *(live.client.entity(Single, id, at=at).note(what) for what, at in due.items())
        )
    rows = await live.database.fetch("select what, at from notes where who = $1", id)
    late = [(row["at"] - due[row["what"]]) / timedelta(milliseconds=1) for row in rows]
    assert len(late) == len(due)
    assert min(late) >= 0
    log.info(
        "numbers: late by %.1f ms (median), %.1f ms (most)", 1e3 * median(late), 1e3 * max(late)
    )


async def test_a_scheduled_message_comes_although_every_runner_died_before_it_was_due(
    live: Live,
) -> None:
    id = live.name()
    now = await live.database.fetchval("select clock_timestamp()")
    due = now + timedelta(seconds=1)
    await live.client.tell(live.client.entity(Single, id, at=due).note, "due")
    await live.kill(*live.runners)
    await live.restore()
    assert await live.noted(id, 1) == ["due"]
    assert await live.database.fetchval("select at >= $2 from notes where who = $1", id, due)


async def test_a_request_has_one_exit_whatever_is_killed_while_it_is_handled(live: Live) -> None:
    ids = live.names(20)
    gate = live.name("gate")
    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        calls = [group.create_task(live.client.entity(Single, id).wait_at(gate)) for id in ids]
        await eventually(partial(live.database.fetchval, BEGUN, ids), timeout=30)
        await live.kill(live.runners[0])
        await live.restore()
        await live.open(gate)
    assert {call.result() for call in calls} <= {runner.pid for runner in live.runners}
    exits = await live.database.fetch(EXITS, ids)
    assert [row["exits"] for row in exits] == [1] * len(ids)


BEGUN = "select exists (select from notes where who = any($1))"
EXITS = """
    select e.entity_id, count(r.*) as exits
    from engine.envelopes e left join engine.replies r using (request_id)
    where e.entity_id = any($1) group by e.request_id, e.entity_id
"""


async def test_what_a_handler_raises_is_its_callers_failure(live: Live) -> None:
    id = live.name()
    entity = live.client.entity(Single, id)
    async with asyncio.timeout(30):
        with pytest.raises(RequestFailed, match="not here") as caught:
            await entity.refuse("not here")
        assert caught.value.error.type == "LookupError"
        assert "refuse" in caught.value.error.traceback
        assert await entity.echo("after") == "after"


async def test_headers_and_trace_reach_the_handler_also_that_of_the_next_owner(live: Live) -> None:
    id, gate = live.name(), live.name("gate")
    given = live.client.entity(Courier, id, headers={"tenant": "blü"}, trace=TRACE)
    async with asyncio.timeout(50), asyncio.TaskGroup() as group:
        assert await given.told() == (TRACE, {"tenant": "blü"})
        await live.client.tell(live.client.entity(Courier, id).wait_at, gate)
        call = group.create_task(given.told())
        await live.noted(id, 1)
        await live.kill(await live.owner(live.address(Courier, id).shard))
        await live.restore()
        await live.open(gate)
    assert call.result() == (TRACE, {"tenant": "blü"})
    assert await live.client.entity(Courier, id).told() == (None, {})


async def test_what_a_handler_sends_carries_its_trace_to_any_process_and_not_its_headers(
    live: Live,
) -> None:
    traced = live.client.entity(Courier, live.name(), headers={"tenant": "blue"}, trace=TRACE)
    plain = live.client.entity(Courier, live.name())
    async with asyncio.timeout(30):
        for id in live.names(10):
            assert await traced.relayed(id) == (TRACE, {})
        assert await plain.relayed(live.name()) == (None, {})
