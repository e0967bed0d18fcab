"""Pruning: what has ended goes as a whole, and nothing that somebody has still to hear of."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from engine.core.clock import SystemClock
from engine.core.envelope import ReplyTo
from engine.core.ids import Snowflake, snowflake_time
from engine.core.journal import JournalKind
from engine.core.status import Status
from engine.storage.protocol import (
    Commit,
    ExecutionFilter,
    ExecutionUpdate,
    InboxRow,
    LaneSession,
)
from engine.storage.retention import RequestTerm, Term
from tests.eventually import eventually
from tests.storage.world import (
    ONE,
    Process,
    defect,
    event,
    message,
    run_key,
    save_one,
    start,
    step,
    success,
    sweep_of,
)

ENDED = datetime(2025, 6, 1, tzinfo=UTC)
LATER = ENDED + timedelta(days=1)
PAST, FAR = datetime(2024, 1, 1, tzinfo=UTC), datetime(2080, 1, 1, tzinfo=UTC)


def term(status: Status = Status.SUCCEEDED, *, until: datetime = LATER) -> Term:
    return Term(
        workflow="Fulfil", status=status, until=until, after=datetime(1970, 1, 1, tzinfo=UTC)
    )


def requests(
    group: str = "default", *, until: datetime = FAR, failed_until: datetime = FAR
) -> RequestTerm:
    return RequestTerm(group=group, until=until, failed_until=failed_until)


async def ended(
    process: Process,
    lane: LaneSession,
    id: str,
    *,
    status: Status = Status.SUCCEEDED,
    at: datetime = ENDED,
) -> Snowflake:
    """An execution that has ended, with a step, an exit and nothing in the inbox."""
    run = await save_one(process, start(id))
    request_id = run.envelope.request_id
    update = ExecutionUpdate(request_id=request_id, run=1, status=status, finished_at=at)
    commit = Commit(
        shard=ONE,
        journal=[step(request_id, 1)],
        replies=[success(request_id)],
        settled=[row.seq for row in (await sweep_of(lane, ONE)).rows],
        execution=update,
    )
    await lane.flush([commit])
    return request_id


async def test_what_ended_is_found_by_workflow_and_status_longest_ago_first(
    process: Process, lane: LaneSession
) -> None:
    late = await ended(process, lane, "late", at=ENDED + timedelta(hours=2))
    early = await ended(process, lane, "early", at=ENDED + timedelta(hours=1))
    failed = await ended(process, lane, "failed", status=Status.FAILED)
    await ended(process, lane, "young", at=LATER + timedelta(hours=1))
    await save_one(process, start("live"))

    both = await process.storage.finished([term(), term(Status.FAILED)], limit=10)
    one = await process.storage.finished([term()], limit=1)
    rest = await process.storage.finished([replace(term(), after=one[0][-1][1])], limit=10)

    assert [[id for id, _ in rows] for rows in both] == [[early, late], [failed]]
    assert [[id for id, _ in rows] for rows in (*one, *rest)] == [[early], [late]]
    assert await process.storage.finished([], limit=10) == []


async def test_an_execution_goes_with_all_that_is_stored_of_it_and_its_key_is_free(
    process: Process, lane: LaneSession
) -> None:
    id = await ended(process, lane, "o-1")
    other = await ended(process, lane, "o-2")
    storage = process.storage

    gone = await storage.prune([id, id], before=LATER)
    again = await save_one(process, start("o-1"))

    assert gone == [id]
    assert await storage.history(id) == []
    assert await storage.replies([id]) == []
    assert await storage.request(id) is None
    assert await storage.load([id]) == []
    assert again.envelope.request_id != id
    assert len(await storage.history(other)) == 1
    assert await storage.prune([id], before=LATER) == []


async def test_what_goes_on_or_has_ended_of_late_is_not_pruned(
    process: Process, lane: LaneSession
) -> None:
    young = await ended(process, lane, "young", at=LATER + timedelta(hours=1))
    live = (await save_one(process, start("live"))).envelope.request_id

    assert await process.storage.prune([young, live], before=LATER) == []
    assert len(await process.storage.executions(ExecutionFilter(), limit=10)) == 2


async def test_what_an_inbox_still_speaks_of_stays(process: Process, lane: LaneSession) -> None:
    parent = (await save_one(process, start("parent"))).envelope.request_id
    child = start("child", parent=parent)
    child = replace(
        child, envelope=replace(child.envelope, reply_to=ReplyTo(execution=parent, shard=ONE))
    )
    id = (await save_one(process, child)).envelope.request_id
    update = ExecutionUpdate(request_id=id, run=1, status=Status.SUCCEEDED, finished_at=ENDED)
    exit = success(id, reply_to=ReplyTo(execution=parent, shard=ONE))
    own = [row.seq for row in (await sweep_of(lane, ONE)).rows if row.execution == id]
    await lane.flush([Commit(shard=ONE, execution=update, replies=[exit], settled=own)])

    early = await process.storage.prune([id], before=LATER)
    rows = (await sweep_of(lane, ONE)).rows
    heard = [row.seq for row in rows if row.reply is not None]
    await lane.flush([Commit(shard=ONE, settled=heard)])
    late = await process.storage.prune([id], before=LATER)

    assert (early, late) == ([], [id])
    assert len(heard) == 1


async def test_an_execution_stays_until_what_it_was_told_before_its_end_is_settled(
    process: Process, lane: LaneSession
) -> None:
    id = (await save_one(process, start("o-1"))).envelope.request_id
    own = [row.seq for row in (await sweep_of(lane, ONE)).rows]
    await save_one(process, replace(message(key="late"), target=run_key("o-1")))
    update = ExecutionUpdate(request_id=id, run=1, status=Status.SUCCEEDED, finished_at=ENDED)
    await lane.flush([Commit(shard=ONE, execution=update, settled=own)])

    early = await process.storage.prune([id], before=LATER)
    told = [row.seq for row in (await sweep_of(lane, ONE)).rows if row.execution == id]
    await lane.flush([Commit(shard=ONE, settled=told)])
    late = await process.storage.prune([id], before=LATER)

    assert (early, len(told), late) == ([], 1, [id])


async def test_the_messages_of_an_execution_go_with_it(process: Process, lane: LaneSession) -> None:
    run = await save_one(process, start("o-1"))
    id = run.envelope.request_id
    told = await save_one(process, replace(message(key="signal"), target=run_key("o-1")))
    sent = await save_one(process, message(key="call"))
    waits = await save_one(process, message(key="waits"))
    rows = (await sweep_of(lane, ONE)).rows
    waiting = waits.envelope.request_id
    settled = [row.seq for row in rows if row.envelope.request_id != waiting]
    ids = [told.envelope.request_id, sent.envelope.request_id, waiting]
    kinds = (JournalKind.SIGNAL, JournalKind.CALL, JournalKind.CALL)
    journal = [
        replace(step(id, 1 + n), kind=kind, source=source)
        for n, (kind, source) in enumerate(zip(kinds, ids, strict=True))
    ]
    update = ExecutionUpdate(request_id=id, run=1, status=Status.SUCCEEDED, finished_at=ENDED)
    replies = [success(ids[1])]
    await lane.flush(
        [Commit(shard=ONE, journal=journal, replies=replies, settled=settled, execution=update)]
    )

    assert await process.storage.prune([id], before=LATER) == [id]
    left = [each for each in ids if await process.storage.request(each) is not None]
    assert left == [waiting]
    assert await process.storage.replies([ids[1]]) == []
    assert set(await process.storage.known(["signal", "call", "waits"])) == {"waits"}


async def test_runs_that_a_live_one_has_left_behind_go_when_they_are_over_for_long(
    process: Process, lane: LaneSession
) -> None:
    id = (await save_one(process, start("o-1"))).envelope.request_id
    told = await save_one(process, replace(message(key="signal"), target=run_key("o-1")))
    sent = await save_one(process, message(key="call"))
    source, waiting = told.envelope.request_id, sent.envelope.request_id
    journal = [
        replace(step(id, 1, run=1), at=ENDED, kind=JournalKind.SIGNAL, source=source),
        replace(step(id, 2, run=1), at=ENDED, kind=JournalKind.CALL, source=waiting),
        replace(step(id, 1, run=2), at=ENDED),
        replace(step(id, 2, run=2), at=LATER + timedelta(days=1)),
        replace(step(id, 1, run=3), at=ENDED),
    ]
    rows = (await sweep_of(lane, ONE)).rows
    settled = [row.seq for row in rows if row.envelope.request_id != waiting]
    update = ExecutionUpdate(request_id=id, run=3, status=Status.RUNNING)
    await lane.flush([Commit(shard=ONE, journal=journal, settled=settled, execution=update)])
    storage, until = process.storage, {"Fulfil": LATER}

    first = await storage.prune_runs(until, after=Snowflake(0), limit=1, runs=5)
    behind = await storage.prune_runs(until, after=id, limit=10, runs=5)
    others = await storage.prune_runs({"Refund": LATER}, after=Snowflake(0), limit=10, runs=5)

    assert (first.count, first.last) == (1, id)
    assert (behind.last, others.last) == (None, None)
    assert [row.run for row in await storage.history(id)] == [2, 2, 3]
    assert await storage.request(source) is None
    assert await storage.request(waiting) is not None


async def test_requests_that_are_done_with_go_when_they_were_due_long_ago(
    process: Process, lane: LaneSession
) -> None:
    soon = SystemClock().now() + timedelta(milliseconds=300)
    done, due_later, dead, _ = [
        await save_one(process, message(key=key, deliver_at=deliver_at))
        for key, deliver_at in (("done", None), ("later", soon), ("dead", None), ("waits", None))
    ]
    rows = {row.envelope.request_id: row.seq for row in await sweep_until(lane, 4)}
    settled = [rows[each.envelope.request_id] for each in (done, due_later, dead)]
    replies = [success(done), success(due_later), defect(dead)]
    await lane.flush([Commit(shard=ONE, replies=replies, settled=settled)])

    async def prune(*, until: datetime, failed_until: datetime) -> tuple[int, set[str]]:
        pruned = await process.storage.prune_requests(
            requests(until=until, failed_until=failed_until), after=Snowflake(0), limit=10
        )
        return pruned.count, set(await process.storage.known(["done", "later", "dead", "waits"]))

    nothing = await prune(until=PAST, failed_until=PAST)
    due = snowflake_time(done.envelope.request_id)
    first = await prune(until=due, failed_until=PAST)
    second = await prune(until=soon, failed_until=PAST)
    third = await prune(until=soon, failed_until=soon)

    assert nothing == (0, {"done", "later", "dead", "waits"})
    assert first == (1, {"later", "dead", "waits"})
    assert second == (1, {"dead", "waits"})
    assert third == (1, {"waits"})
    assert await process.storage.replies([done.envelope.request_id]) == []
    assert await process.storage.request(done.envelope.request_id) is None
    await save_one(process, message(key="done"))


async def test_requests_of_executions_and_to_them_stay_with_them(
    process: Process, lane: LaneSession
) -> None:
    run = await save_one(process, start("o-1"))
    sender = ReplyTo(execution=run.envelope.request_id, shard=ONE)
    sent = await save_one(process, message(key="call", reply_to=sender))
    told = await save_one(process, event("o-1", key="signal"))
    rows = await sweep_until(lane, 3)
    await lane.flush(
        [Commit(shard=ONE, replies=[success(sent)], settled=[row.seq for row in rows])]
    )
    heard = [row.seq for row in (await sweep_of(lane, ONE)).rows]
    await lane.flush([Commit(shard=ONE, settled=heard)])

    pruned = await process.storage.prune_requests(requests(), after=Snowflake(0), limit=10)

    assert pruned.count == 0
    assert set(await process.storage.known(["call", "signal"])) == {"call", "signal"}
    assert await process.storage.request(told.envelope.request_id) is not None


async def test_requests_are_pruned_in_parts_and_by_group(
    process: Process, lane: LaneSession
) -> None:
    ids = [(await save_one(process, message())).envelope.request_id for _ in range(5)]
    rows = await sweep_until(lane, 5)
    await lane.flush(
        [
            Commit(
                shard=ONE,
                replies=[success(id) for id in ids],
                settled=[row.seq for row in rows],
            )
        ]
    )
    storage = process.storage
    await storage.ensure_groups(["other"])

    others = await storage.prune_requests(requests("other"), after=Snowflake(0), limit=10)
    parts, last = [], Snowflake(0)
    while True:
        pruned = await storage.prune_requests(requests(), after=last, limit=2)
        parts.append(pruned.count)
        if pruned.last is None:
            break
        last = pruned.last

    assert others.count == 0
    assert parts == [2, 2, 1]


async def sweep_until(lane: LaneSession, count: int) -> list[InboxRow]:
    """So many rows, some of which may be due a little later."""

    async def swept() -> list[InboxRow]:
        rows = list((await sweep_of(lane, ONE)).rows)
        return rows if len(rows) >= count else []

    return await eventually(swept)
