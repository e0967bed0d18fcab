"""What one execution writes, when that is more than one statement should carry."""

from dataclasses import replace
from datetime import UTC, datetime

from engine.core.clock import SystemClock
from engine.core.envelope import EnvelopeRequest
from engine.core.ids import EntityAddress, EntityId, EntityType, ShardId, Snowflake
from engine.core.journal import JournalKind, JournalRow
from engine.core.reply import ReplyKind
from engine.core.status import Status
from engine.storage.protocol import Commit, NewReply, SaveRequest, StoredExecution
from engine.workflow.ledger import Ledger

SHARD = ShardId("default", 1)
LARGE = bytes(6 << 20)


def ledger() -> Ledger:
    state = StoredExecution(
        request_id=Snowflake(1),
        workflow="Fulfil",
        execution_id="o-1",
        shard=SHARD,
        status=Status.SCHEDULED,
        run=1,
        version=1,
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
    )
    return Ledger(
        state,
        version=1,
        begun_at=None,
        last_position=0,
        clock=SystemClock(),
    )


def call(id: int) -> SaveRequest:
    address = EntityAddress(SHARD, EntityType("Stock"), EntityId("a"))
    return SaveRequest(
        envelope=EnvelopeRequest(
            request_id=Snowflake(id), address=address, tag="put", payload=b"{}"
        )
    )


def step_row(position: int) -> JournalRow:
    return JournalRow(
        execution=Snowflake(1),
        run=1,
        position=position,
        kind=JournalKind.STEP,
        name="step",
        ordinal=position,
        at=datetime(2026, 1, 1, tzinfo=UTC),
        payload=LARGE,
    )


def commits_of(ledger: Ledger) -> list[Commit]:
    commits: list[Commit] = []
    while ledger.ready:
        commit = ledger.collect(SHARD)
        assert commit is not None
        assert ledger.collect(SHARD) is None
        assert ledger.committed() is commit
        commits.append(commit)
    return commits


def test_rows_leave_in_order_a_statements_worth_at_a_time_and_calls_with_their_rows() -> None:
    full = ledger()
    for number in range(5):
        full.append(JournalKind.STEP, "step", number, payload=LARGE)
        full.append(JournalKind.CALL, "call", number, source=Snowflake(10 + number))
        full.request(call(10 + number))

    commits = commits_of(full)

    assert [row.position for each in commits for row in each.journal] == list(range(1, 11))
    assert all(each.size < 16 << 20 for each in commits)
    for each in commits:
        called = [row.source for row in each.journal if row.kind is JournalKind.CALL]
        assert [request.envelope.request_id for request in each.requests] == called


def test_what_is_durable_is_what_has_left_and_the_start_goes_first() -> None:
    full = ledger()
    full.need_start()
    for number in range(3):
        full.append(JournalKind.STEP, "step", number, payload=LARGE)

    first = full.collect(SHARD)
    full.committed()

    assert first is not None
    assert first.execution is not None
    assert first.execution.started_at is not None
    assert [full.durable(mark) for mark in range(5)] == [True, True, True, True, False]
    commits_of(full)
    assert full.durable(full.mark)


def test_the_end_leaves_with_the_last_of_its_rows() -> None:
    full = ledger()
    full.held.append(7)
    for number in range(4):
        full.append(JournalKind.STEP, "step", number, payload=LARGE)
    reply = NewReply(request_id=full.id, sequence=0, kind=ReplyKind.SUCCESS, payload=b"1")
    full.end(Status.SUCCEEDED, reply)

    *before, last = commits_of(full)

    assert before
    assert not any(each.replies or each.settled for each in before)
    assert {each.execution.status for each in before if each.execution} == {Status.RUNNING}
    assert (last.replies, last.settled) == ([reply], [7])
    assert last.execution is not None
    assert last.execution.status is Status.SUCCEEDED


def test_what_was_asked_after_a_call_does_not_leave_before_it() -> None:
    full = ledger()
    for number in range(3):
        full.append(JournalKind.STEP, "step", number, payload=LARGE)
    full.append(JournalKind.CALL, "child", 0, source=Snowflake(10))
    full.request(call(10))
    full.request(call(11))  # such as an interrupt of the child, which has no row of its own

    commits = commits_of(full)

    assert [[each.envelope.request_id for each in c.requests] for c in commits] == [[], [10, 11]]


def test_a_new_run_begins_as_a_whole_behind_what_is_left_of_the_one_before() -> None:
    full = ledger()
    for number in range(2):
        full.append(JournalKind.STEP, "step", number, payload=LARGE)
    full.repair([replace(step_row(number), run=2) for number in range(1, 4)])
    full.set_status(Status.RUNNING)

    before, begun = commits_of(full)

    assert [(row.run, row.position) for row in before.journal] == [(1, 1), (1, 2)]
    assert [(row.run, row.position) for row in begun.journal] == [(2, 1), (2, 2), (2, 3)]
    assert [each.execution and each.execution.run for each in (before, begun)] == [1, 2]
