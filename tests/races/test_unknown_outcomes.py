"""What nobody knows to have committed, asked again while its backend may still do so: G3, G6."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

import asyncpg

from engine.core.errors import StorageUnavailable
from engine.core.journal import JournalRow
from engine.storage.protocol import Fence, Saved, SaveOutcome, SaveRequest
from engine.storage.transaction import Transaction
from tests.eventually import eventually
from tests.gates import ServerGates, Side, every_order
from tests.storage.world import ONE, Process, World, event, message, next_id, start, step

WORKFLOW = "Double"
STORED = """
    select array[
        (select count(*) from engine.envelopes where request_id = $1),
        (select count(*) from engine.inbox where request_id = $1)
    ]
"""


KINDS = {"start": 21, "message": 21, "signal": 21, "opening": 12}
"""In how many orders each can meet: an opening has its key already where the others write."""


async def test_a_save_of_unknown_outcome_against_its_second_run(
    dsn: str, postgres: World, gates: ServerGates
) -> None:
    """G3: stored once, and the second run knows it for its own, whatever becomes of the first one,
    whose backend goes on alone."""
    process = await postgres.process(register=False)
    saving = process.storage._saving  # type: ignore[attr-defined]
    for run, sessions in (("first", "first"), ("second", f"outlast:{process.runner}:%")):
        await gates.hold(f"the {run} writes", "envelopes", of=sessions)
        await gates.hold(f"the {run} commits", "inbox", of=sessions, commit=True)

    @asynccontextmanager
    async def race(kind: str) -> AsyncIterator[Mapping[str, Side]]:
        key = f"o-{next_id()}"
        aim = start(key, workflow=WORKFLOW)
        request = await asked(process, kind, key, aim)
        name, arguments = saving._statement_for([request])
        call = process.storage._pool.queries.call(name, *arguments)  # type: ignore[attr-defined]
        first = await asyncpg.connect(dsn, server_settings={"application_name": "first"})
        answers: list[SaveOutcome] = []

        async def run_first() -> None:
            with suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
                await first.fetch(*call)

        async def end_first() -> None:
            await gates("the first ends")
            await gates.end("first")

        async def run_second() -> None:
            await gates("the second asks")
            (saved,) = await process.storage.save([request])
            if saved.outcome is SaveOutcome.BLOCKED:
                (saved,) = await until_free(process, request)
            assert saved.request_id == request.envelope.request_id
            answers.append(saved.outcome)

        yield {"first": run_first, "end": end_first, "second": run_second}

        assert answers in ([SaveOutcome.CREATED], [SaveOutcome.EXISTS])
        ids = [request.envelope.request_id]
        assert await gates.sql.fetchval(STORED, *ids) == [1, 1]
        await first.close()

    sides = {
        "first": ("the first writes", "the first commits"),
        "end": ("the first ends",),
        "second": ("the second asks", "the second writes", "the second commits"),
    }
    for kind, orders in KINDS.items():
        assert len(await every_order(gates, sides, partial(race, kind))) == orders, kind


async def asked(process: Process, kind: str, key: str, aim: SaveRequest) -> SaveRequest:
    """What is to be saved, and what has to be there for it."""
    match kind:
        case "start":
            return aim
        case "message":
            return message()
        case "signal":
            await process.storage.save([aim])
            return replace(event(key), target=aim.envelope.key)
        case _:
            return replace(event(key), opening=aim, target=aim.envelope.key)


async def until_free(process: Process, request: SaveRequest) -> Sequence[Saved]:
    """As an outbox goes on with what met a lock."""
    while True:
        saved = await process.storage.save([request], apart=True)
        if saved[0].outcome is not SaveOutcome.BLOCKED:
            return saved
        await asyncio.sleep(0.001)


async def test_a_commit_of_unknown_outcome_against_the_question(
    postgres: World, gates: ServerGates
) -> None:
    """G6: the answer is what becomes of the backend, which may still be committing."""
    process, lane = await postgres.runner_with_lane()
    user = f"outlast:{process.runner}:user"
    await gates.hold("commits", "journal", of=user, commit=True)
    await gates.hold("asks", "journal", of=user)
    await gates.sql.execute("create table effects (execution bigint)")
    epochs = await lane.acquire([ONE])
    fence = Fence(shard=ONE, epoch=epochs[ONE], runner=process.runner)

    @asynccontextmanager
    async def race() -> AsyncIterator[Mapping[str, Side]]:
        row = step(next_id(), 1)
        told: list[bool] = []

        async def work(tx: Transaction) -> JournalRow:
            await tx.execute("insert into effects values ($1)", row.execution)
            return row

        async def transact() -> None:
            try:
                await process.storage.transact(fence, work)
            except StorageUnavailable:
                told.append(False)
            else:
                told.append(True)

        await gates.close(["commits"])
        transaction = asyncio.get_running_loop().create_task(transact())
        pid = await eventually(lambda: gates.sql.fetchval(COMMITTING, user), every=0.002)
        (session,) = process.storage._pools.user._lent  # type: ignore[attr-defined]

        async def commit() -> None:
            async def over() -> bool:
                return await gates.sql.fetchval(OVER, pid)

            await eventually(over, every=0.002)

        async def lose() -> None:
            await gates("loses its connection")
            session.terminate()
            await transaction

        async def end() -> None:
            await gates("ends")
            await gates.sql.execute("select pg_terminate_backend($1)", pid)

            async def noticed() -> bool:
                return transaction.done() or await gates.sql.fetchval(ASKING, user, pid)

            await eventually(noticed, every=0.002)

        yield {"backend": commit, "runner": lose, "end": end}

        effects = await gates.sql.fetchval(EFFECTS, row.execution)
        rows = await process.storage.history(row.execution)
        assert [effects, len(rows)] == [told[0], told[0]]

    sides = {
        "backend": ("commits",),
        "runner": ("loses its connection", "asks"),
        "end": ("ends",),
    }
    orders = await every_order(gates, sides, race)
    assert {tuple(each for each in order if each != "ends") for order in orders} >= {
        ("loses its connection", "asks", "commits"),
        ("loses its connection", "commits", "asks"),
        ("commits", "loses its connection"),
    }
    await lane.close()


COMMITTING = """
    select a.pid from pg_stat_activity a join pg_locks l on l.pid = a.pid
    where a.application_name = $1 and l.locktype = 'advisory' and not l.granted
"""
ASKING = f"{COMMITTING} and a.pid <> $2"
OVER = "select not exists (select from pg_stat_activity where pid = $1 and state <> 'idle')"
EFFECTS = "select count(*) from effects where execution = $1"
