"""What executions need of the code, as ``storage.protocol`` has it counted by both storages."""

from dataclasses import replace

from engine.core.ids import RunnerId, Snowflake
from engine.core.journal import JournalKind, JournalRow
from engine.core.status import Status
from engine.storage.protocol import UNDECIDED, Commit, ExecutionUpdate, LaneSession
from engine.storage.standings import MISFIT, PatchAnswer, Standing
from tests.storage.world import ONE, TWO, Process, save_one, start, step


def moved(
    id: Snowflake,
    status: Status = Status.RUNNING,
    *,
    run: int = 1,
    version: int | None = None,
    waiting: str | None = None,
) -> ExecutionUpdate:
    return ExecutionUpdate(request_id=id, run=run, status=status, version=version, waiting=waiting)


def patched(id: Snowflake, change: str, answer: bytes, *, run: int = 1) -> JournalRow:
    row = step(id, 1 if answer == b"true" else 2, run=run, payload=answer)
    return replace(row, kind=JournalKind.PATCHED, name=change)


async def write(lane: LaneSession, update: ExecutionUpdate, *rows: JournalRow) -> None:
    await lane.flush([Commit(shard=ONE, execution=update, journal=rows)])


async def test_a_version_is_kept_until_another_is_written(
    process: Process, lane: LaneSession
) -> None:
    request = await save_one(process, start("o-1", version=UNDECIDED))
    id = request.envelope.request_id
    seen: list[int] = []
    for version in (3, None, UNDECIDED):
        await write(lane, moved(id, version=version))
        found = await process.storage.find("Fulfil", "o-1")
        assert found is not None
        seen.append(found.version)
    assert seen == [3, 3, UNDECIDED]


async def test_executions_are_counted_by_version_status_and_owner(
    process: Process, lane: LaneSession
) -> None:
    ids = [
        (await save_one(process, start(f"o-{n}", version=1))).envelope.request_id for n in range(4)
    ]
    await save_one(process, start("far", shard=TWO, version=2))
    await save_one(process, start("r", workflow="Refund", version=UNDECIDED))
    reason = f"{MISFIT}the journal holds another step"
    await write(lane, moved(ids[0], Status.BLOCKED, waiting=reason))
    await write(lane, moved(ids[1], Status.BLOCKED, waiting="its process was lost"))
    await write(lane, moved(ids[2], Status.SUCCEEDED))

    def standing(
        workflow: str,
        version: int,
        status: Status,
        executions: int,
        misfits: int = 0,
        runner: RunnerId | None = process.runner,
    ) -> Standing:
        return Standing(
            workflow=workflow,
            version=version,
            status=status,
            runner=runner,
            executions=executions,
            misfits=misfits,
        )

    assert await process.storage.standings() == [
        standing("Fulfil", 1, Status.SCHEDULED, 1),
        standing("Fulfil", 1, Status.BLOCKED, 2, misfits=1),
        standing("Fulfil", 2, Status.SCHEDULED, 1, runner=None),
        standing("Refund", UNDECIDED, Status.SCHEDULED, 1),
    ]


async def test_answers_are_those_of_present_runs_that_have_not_ended(
    process: Process, lane: LaneSession
) -> None:
    ids = [(await save_one(process, start(f"o-{n}"))).envelope.request_id for n in range(4)]
    await write(lane, moved(ids[0]), patched(ids[0], "fix", b"true"))
    await write(lane, moved(ids[1]), patched(ids[1], "fix", b"true"))
    await write(
        lane,
        moved(ids[2], run=2),
        patched(ids[2], "fix", b"true"),
        patched(ids[2], "fix", b"false", run=2),
    )
    await write(lane, moved(ids[3], Status.FAILED), patched(ids[3], "fix", b"true"))
    await write(lane, moved(ids[0]), patched(ids[0], "other", b"false"))

    assert await process.storage.patch_answers() == [
        PatchAnswer(workflow="Fulfil", change="fix", answer=False, executions=1),
        PatchAnswer(workflow="Fulfil", change="fix", answer=True, executions=2),
        PatchAnswer(workflow="Fulfil", change="other", answer=False, executions=1),
    ]
