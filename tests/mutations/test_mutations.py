"""Each guarantee's mechanism, broken on purpose, is missed by a test.

A copy of the project gets one change, and the test that is named must fail there. The text that is
changed must be found just once, so that a mutation stays in step with the code.
"""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = ("cli", "engine", "examples", "migrations", "tests")
SQL = "engine/storage/sql"


@dataclass(frozen=True, slots=True, kw_only=True)
class Mutation:
    """``old`` becomes ``new`` in a file; ``breaks`` says what does not hold any more."""

    breaks: str
    file: str
    old: str
    new: str
    test: str


_REGISTERS = """\
                if unwatched:
                    self._registered |= unwatched & self._waiting.keys()
                    await self._storage.watch(sorted(unwatched))
"""
_READS = """\
                before = self._after(unread)
                for ids in _chunks(sorted(unread)):
                    await self._read(ids, before)
"""
MUTATIONS = (
    Mutation(
        breaks="G1: a transaction holds its shard's row to the end",
        file=f"{SQL}/check_fence.sql",
        old="\nfor share;",
        new=";",
        test="storage/test_conformance.py::test_nobody_takes_a_shard_from_under_a_transaction",
    ),
    Mutation(
        breaks="G1: a transaction is of the server that its shard was taken of",
        file=f"{SQL}/check_fence.sql",
        old="and server_started_at = pg_postmaster_start_time()",
        new="",
        test="storage/test_postgres_transaction.py"
        "::test_no_transaction_begins_on_a_server_that_took_another_ones_place",
    ),
    Mutation(
        breaks="G1: a transaction of an epoch that is over is rolled back",
        file="engine/storage/user_transaction.py",
        old="if not held:",
        new="if held is None:",
        test="storage/test_postgres_transaction.py"
        "::test_a_fence_waits_for_a_takeover_under_way_and_then_refuses",
    ),
    Mutation(
        breaks="G1: what a lane had when its session ended is not written on the next",
        file="engine/storage/lane.py",
        old="if generation != self.generation or self._session is None:",
        new="if self._session is None:",
        test="storage/test_lane.py::test_a_write_of_an_ended_generation_is_refused_in_the_next_one",
    ),
    Mutation(
        breaks="G1: every owner begins an epoch",
        file=f"{SQL}/claim_shards.sql",
        old="set epoch = greatest(s.epoch, f.had) + 1,",
        new="set epoch = s.epoch,",
        test="storage/test_conformance.py::test_each_acquisition_begins_a_new_epoch",
    ),
    Mutation(
        breaks="G1: a runner declared dead takes no lock",
        file=f"{SQL}/lock_shards.sql",
        old="and r.died_at is null",
        new="",
        test="storage/test_postgres_lane.py"
        "::test_a_runner_declared_dead_holds_no_lock_for_a_moment",
    ),
    Mutation(
        breaks="G2: of many that use a key at once, one is stored",
        file=f"{SQL}/save.sql",
        old="where w.key is null or w.request_id in (select f.request_id from fresh f)",
        new="where true or w.request_id in (select f.request_id from fresh f)",
        test="storage/test_postgres_saving.py::test_one_key_twice_in_one_batch_is_stored_once",
    ),
    Mutation(
        breaks="G2: a key that is taken is refused to another payload",
        file="engine/cluster/sender.py",
        old="if saved.payload is not None and not same_json(saved.payload, envelope.payload):",
        new="if False:",
        test="cluster/test_sharding.py::test_requests_with_one_key_run_once_and_share_the_reply",
    ),
    Mutation(
        breaks="G2: a start that waited for another's commit looks again",
        file="engine/storage/saving.py",
        old="        for _ in range(_RACES):\n            answers = saved_from(await driver",
        new="        for _ in range(1):\n            answers = saved_from(await driver",
        test="races/test_keys.py::test_a_start_in_a_users_transaction_against_a_start",
    ),
    Mutation(
        breaks="G3: what is pruned just before it is restarted is started anew",
        file="engine/by_name.py",
        old="    if shard is None:\n        await load(node, loaded.execution.request_id)\n",
        new="    if shard is None:\n        return\n",
        test="races/test_prunes.py::test_a_restart_against_a_prune",
    ),
    Mutation(
        breaks="G3: what was sent on a connection that was lost is sent again",
        file="engine/storage/pool.py",
        old="if knocks >= _KNOCKS or monotonic() + delay > give_up or self._closed:",
        new="if True:",
        test="storage/test_postgres_saving.py"
        "::test_a_save_whose_connection_is_lost_runs_again_and_is_still_created",
    ),
    Mutation(
        breaks="G4: the first exit is the exit",
        file=f"{SQL}/finish.sql",
        old="    ), 0) = 0\n",
        new="    ), 0) >= 0\n",
        test="storage/test_conformance.py::test_the_first_exit_is_the_exit",
    ),
    Mutation(
        breaks="G4: who waits registers before it reads",
        file="engine/cluster/replies.py",
        old=_REGISTERS + _READS,
        new=_READS + _REGISTERS,
        test="races/test_waiters.py::test_a_join_against_a_finish_in_memory",
    ),
    Mutation(
        breaks="G5: no command leaves before what it depends on is durable",
        file="engine/workflow/outgoing.py",
        old="while count < len(waiting) and self._ledger.durable(waiting[count].mark):",
        new="while count < len(waiting):",
        test="workflow/test_durable_first.py"
        "::test_no_step_begins_before_what_it_depends_on_is_stored",
    ),
    Mutation(
        breaks="G5: no query is answered before what it saw is durable",
        file="engine/workflow/resident.py",
        old="while self._looked and self._ledger.durable(self._looked[0][0]):",
        new="while self._looked:",
        test="workflow/test_durable_first.py"
        "::test_no_query_is_answered_before_what_it_depends_on_is_stored",
    ),
    Mutation(
        breaks="G5: a step that was called with something else is noticed",
        file="engine/workflow/replay.py",
        old="if row.digest not in (ANY_DIGEST, step.digest):",
        new="if False:",
        test="workflow/test_nondeterminism.py",
    ),
    Mutation(
        breaks="G6: a commit of unknown outcome is found out",
        file="engine/storage/user_transaction.py",
        old="            await self._ask_whether_committed(row)",
        new='            raise StorageUnavailable("the connection was lost")',
        test="storage/test_postgres_transaction.py::test_a_commit_of_unknown_outcome_is_found_out",
    ),
    Mutation(
        breaks="G7: the idempotency key is the same on every attempt",
        file="engine/workflow/outgoing.py",
        old="{step.name}/{step.ordinal + 1}",
        new="{step.name}/{step.ordinal + 1}/{step.attempt}",
        test="workflow/test_behaviour.py"
        "::test_attempts_go_on_after_a_crash_with_the_same_idempotency_key",
    ),
    Mutation(
        breaks="G8: a shard's messages are read in the order they were stored",
        file=f"{SQL}/sweep.sql",
        old="order by d.seq nulls first",
        new="order by d.seq desc nulls first",
        test="storage/test_conformance.py"
        "::test_a_sweep_gives_a_shards_rows_in_the_order_they_were_stored",
    ),
    Mutation(
        breaks="G8: a sweep begins behind what was seen once all that may come before has come",
        file=f"{SQL}/sweep.sql",
        old="array(select pg_snapshot_xip(pg_current_snapshot())::text::bigint) as running",
        new="array[]::bigint[] as running",
        test="storage/test_postgres_lane.py"
        "::test_a_sweep_tells_of_every_transaction_that_has_begun_to_write",
    ),
    Mutation(
        breaks="G9: nothing is delivered early",
        file=f"{SQL}/sweep.sql",
        old="and i.due_at <= now()",
        new="and i.due_at <= now() + interval '1 minute'",
        test="storage/test_conformance.py::test_a_row_is_delivered_once_it_is_due_in_its_old_place",
    ),
    Mutation(
        breaks="G10: without notifications the poll finds everything",
        file="engine/storage/lane.py",
        old="delay = self._poll().total_seconds()",
        new="delay = 3600.0",
        test="storage/test_lane.py::test_all_shards_are_swept_again_and_again_though_nobody_rings",
    ),
)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project, to be changed."""
    for name in COPIED:
        ignored = shutil.ignore_patterns("mutations", "*.pyc.*")  # which others write just now
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for name in ("pyproject.toml", "alembic.ini"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


@pytest.mark.timeout(120)
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.breaks)
def test_a_broken_mechanism_is_missed(mutation: Mutation, copy: Path, server_dsn: str) -> None:
    file = copy / mutation.file
    text = file.read_text()
    assert text.count(mutation.old) == 1, f"{mutation.file} has changed: bring the mutation in step"
    file.write_text(text.replace(mutation.old, mutation.new))

    done = subprocess.run(
        [
            sys.executable,
            *("-m", "pytest", "-x", "-q", "-p", "no:xdist", "-p", "no:randomly"),
            *("-p", "no:cacheprovider", f"tests/{mutation.test}"),
        ],
        cwd=copy,
        env=os.environ | {"OUTLAST_TEST_DSN": server_dsn, "PYTHONPATH": str(copy)},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1, done.stdout + done.stderr  # tests ran, and one failed
    assert " failed" in done.stdout
    assert " error" not in done.stdout.splitlines()[-1]
