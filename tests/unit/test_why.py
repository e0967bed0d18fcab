"""The sentence that says why an execution stands where it stands."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from engine.core.errors import ErrorDetails
from engine.core.ids import RunnerId, ShardId, Snowflake
from engine.core.journal import JournalKind, JournalRow, Outcome
from engine.core.reply import encode_error
from engine.core.status import Status
from engine.storage.lock_holder import LockHolder
from engine.storage.protocol import RunnerRow, StoredExecution
from engine.why import Situation, why

AT = datetime(2025, 6, 1, 12, tzinfo=UTC)
ID = RunnerId(UUID(int=1))
OWNER = RunnerRow(
    id=ID, groups=("default",), host="web", pid=7, types={"Fulfil": "workflow:default"}
)


def execution(status: Status, waiting: str | None = None) -> StoredExecution:
    return StoredExecution(
        request_id=Snowflake(1),
        workflow="Fulfil",
        execution_id="o-1",
        shard=ShardId("default", 3),
        status=status,
        run=1,
        version=1,
        created_at=AT,
        waiting=waiting,
        runner=ID,
    )


def row(kind: JournalKind, payload: bytes = b"", **more: object) -> JournalRow:
    made = JournalRow(
        execution=Snowflake(1), run=1, position=1, kind=kind, name="charge", ordinal=0, at=AT
    )
    return replace(made, payload=payload, **more)  # type: ignore[arg-type]


FAILED_ATTEMPT = row(
    JournalKind.ATTEMPT,
    encode_error(ErrorDetails("ConnectionError", "503")),
    outcome=Outcome.FAILED,
    due_at=AT,
)

RETRIED = (
    "attempt 1 of step charge failed with ConnectionError: 503,"
    " the next is due 2025-06-01T12:00:00+00:00"
)


def test_a_lock_that_no_process_has_is_of_a_prepared_transaction() -> None:
    holder = LockHolder(shards=(ShardId("default", 3),), pid=None)
    told = why(Situation(execution=execution(Status.RUNNING), holder=holder))

    assert "since a prepared transaction holds its lock" in told
    assert "rollback prepared ends one" in told


@pytest.mark.parametrize(
    ("situation", "sentence"),
    [
        (
            Situation(
                execution=execution(Status.RUNNING),
                owner=OWNER,
                holder=LockHolder(
                    shards=(ShardId("default", 3),), pid=9, login="eve", application="psql"
                ),
            ),
            (
                "nobody can own its shard default:3, since process 9 (login 'eve', application"
                " 'psql') holds its lock and is no live runner: end it, psql -c 'select"
                " pg_terminate_backend(9)'"
            ),
        ),
        (
            Situation(execution=execution(Status.SCHEDULED)),
            f"runner {ID} has it: it begins, or its first step has not ended yet",
        ),
        (
            Situation(execution=execution(Status.SCHEDULED), owner=OWNER, starts_at=AT),
            "it is to start at 2025-06-01T12:00:00+00:00",
        ),
        (
            Situation(execution=execution(Status.SUSPENDED, "waits for deferred approved")),
            "it waits for deferred approved",
        ),
        (
            Situation(
                execution=execution(Status.SUSPENDED, "waits for the timer due then"),
                journal=[row(JournalKind.STEP)],
            ),
            "it waits for the timer due then, since 2025-06-01T12:00:00+00:00",
        ),
        (
            Situation(
                execution=execution(Status.SUSPENDED, "waits for attempt 2 of step charge#1"),
                journal=[FAILED_ATTEMPT],
            ),
            (
                "it waits for attempt 2 of step charge#1, since 2025-06-01T12:00:00+00:00;"
                " attempt 1 of step charge failed with ConnectionError: 503"
            ),
        ),
        (
            Situation(execution=execution(Status.SUSPENDED)),
            (
                "it waits for no step, timer or deferred, so that nothing will wake it: interrupt"
                " it, and correct its code"
            ),
        ),
        (
            Situation(execution=execution(Status.BLOCKED, "its journal was refused")),
            "it is blocked: its journal was refused",
        ),
        (
            Situation(execution=execution(Status.RUNNING), owner=OWNER, journal=[]),
            "it runs on runner web:7; no step has ended yet",
        ),
        (
            Situation(execution=execution(Status.RUNNING), owner=OWNER),
            "it runs on runner web:7",
        ),
        (
            Situation(
                execution=execution(Status.RUNNING), owner=OWNER, journal=[FAILED_ATTEMPT], queued=3
            ),
            f"it runs on runner web:7; {RETRIED}; 2 messages wait for it",
        ),
        (
            Situation(
                execution=execution(Status.RUNNING), owner=OWNER, journal=[row(JournalKind.CALL)]
            ),
            "it runs on runner web:7; it waits for the reply of charge",
        ),
        (
            Situation(execution=execution(Status.PAUSED, "since noon by ada: deploy")),
            "it is paused since noon by ada: deploy: 'outlast resume Fulfil/o-1' lets it go on",
        ),
        (Situation(execution=execution(Status.FAILED)), "it has ended: failed"),
    ],
)
def test_each_state_has_its_sentence(situation: Situation, sentence: str) -> None:
    assert why(situation) == sentence


def test_a_shard_without_an_owner_comes_first() -> None:
    orphan = replace(execution(Status.RUNNING), runner=None)

    assert why(Situation(execution=orphan)) == (
        "nobody owns its shard default:3: start a runner that serves Fulfil with 'outlast run';"
        " it was running"
    )


def test_an_owner_that_does_not_serve_it_comes_first() -> None:
    other = replace(OWNER, types={"Refund": "workflow:default"})

    assert why(Situation(execution=execution(Status.SCHEDULED), owner=other)) == (
        "runner web:7 owns its shard default:3 and does not serve Fulfil: let all runners of group"
        " default register it, or give another app a schema of its own (OUTLAST_SCHEMA); no step of"
        " it has ended yet"
    )


def test_an_owner_without_a_sign_of_life_comes_first() -> None:
    silent = Situation(
        execution=execution(Status.RUNNING),
        owner=replace(OWNER, beat_at=AT),
        silent_before=AT + timedelta(seconds=1),
    )

    assert why(silent) == (
        "runner web:7 owns its shard default:3 and has given no sign of life since"
        " 2025-06-01T12:00:00+00:00: another runner takes over within seconds if one is live, else"
        " start one with 'outlast run'; it was running"
    )
    assert why(replace(silent, silent_before=AT)).startswith("it runs on runner web:7")
