"""What a login may do: one that may only SELECT looks at everything, one with grants works."""

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from engine import Cron, ExecutionFailed, Runner
from engine.storage.entities import StateWrite
from engine.storage.protocol import Commit, Post, PostKind
from engine.storage.rights import Kind, grants
from tests.cli.orders import Broken, Slow
from tests.cli.terminal import do, ended, outlast, script, served, settings
from tests.cli.test_entities import shopping
from tests.eventually import eventually
from tests.roles import role
from tests.storage.world import (
    ONE,
    ack,
    chunk,
    defect,
    interrupt,
    message,
    next_id,
    postgres_world,
)


async def test_looking_needs_select_only(dsn: str) -> None:
    with role(dsn, Kind.INSPECTOR) as reader_dsn:
        await _look(dsn, reader_dsn)


async def _look(dsn: str, reader_dsn: str) -> None:
    async with served(dsn) as client:
        await client.execute(Slow, 0, key="s-1")
        await client.start(Broken, "be", key="b-1")
        for command, code in {
            "ls": 0,
            "show s-1": 0,
            "why s-1": 0,
            "history s-1": 0,
            "tail s-1": 0,
            "poll s-1": 0,
            "join s-1": 0,
            "join b-1": 1,
            "runners": 0,
            "shards": 0,
            "versions": 0,
            "migrate --check": 0,
        }.items():
            ended = await do(*command.split(), dsn=reader_dsn)
            assert ended.code == code, (command, ended)
            assert ended.out or code, command
        patches = await do("patches", dsn=reader_dsn)
        doctor = await do("doctor", dsn=reader_dsn)

    assert (patches.code, patches.out) == (0, "")
    assert doctor.lines, doctor
    assert not doctor.err


class Daily(Cron):
    schedule = "0 6 * * *"

    async def run(self, at: datetime) -> None:
        """Nothing."""


async def test_looking_at_crons_needs_select_only(dsn: str) -> None:
    with role(dsn, Kind.INSPECTOR) as reader_dsn:
        async with Runner(settings(dsn)).register(Daily()) as runner:
            await eventually(runner.client.schedules)
            await runner.client.schedule(Daily).trigger()
            listed = await do("schedules", dsn=reader_dsn)
            (shown,) = (await do("schedules", "show", "Daily", dsn=reader_dsn)).lines

    assert [line["name"] for line in listed.lines] == ["Daily"]
    assert [fire["manual"] for fire in shown["fires"]] == [True]


async def test_looking_at_entities_needs_select_only(dsn: str) -> None:
    with role(dsn, Kind.INSPECTOR) as reader_dsn:
        async with shopping(dsn):
            for command in ("entities", "entities Cart", "state Cart/a"):
                ended = await do(*command.split(), dsn=reader_dsn)
                assert (ended.code, ended.err) == (0, ""), command
                assert ended.out, command
            edit = ["state", "Cart/a", "--set", "{}", "--version", "2"]
            ended = await do(*edit, dsn=reader_dsn)
    assert ended.code == 7
    assert "may not do this" in ended.err


async def ensure_known(dsn: str) -> None:
    """Let there be an execution of Slow and one that failed."""
    async with served(dsn) as client:
        await client.execute(Slow, 0, key="s-1")
        with pytest.raises(ExecutionFailed):
            await client.execute(Broken, "be", key="b-1")


async def test_an_inspector_cannot_act_and_is_told_what_is_missing(dsn: str) -> None:
    with role(dsn, Kind.INSPECTOR) as reader_dsn:
        await ensure_known(dsn)
        acts = {
            "start Slow 0 --key s-2": "client",
            "interrupt s-1": "client",
            "terminate s-1": "client",
            "pause s-1": "client",
            "retry b-1": "worker",
            "prune --older-than 0s": "worker",
        }
        for act, kind in acts.items():
            ended = await do(*act.split(), dsn=reader_dsn)
            assert (ended.code, f"'outlast grants ROLE --as {kind}'" in ended.err) == (7, True), (
                act,
                ended,
            )


async def test_a_runner_is_told_that_it_needs_the_grants_of_a_worker(
    dsn: str, project: Path
) -> None:
    with role(dsn, Kind.INSPECTOR) as reader_dsn:
        run = ended(script("run", "orders:app", dsn=reader_dsn, cwd=project))

    assert (run.code, run.out) == (7, "")
    assert run.err.strip().endswith("a runner needs the grants of a worker")
    assert len(run.err.splitlines()) == 1


async def test_a_role_with_the_printed_grants_can_do_all_but_migrate(dsn: str) -> None:
    with role(dsn, Kind.WORKER) as worker_dsn:
        async with served(worker_dsn) as client:
            assert await client.execute(Slow, 0, key="s-1") == "done"
        doctor = await do("doctor", dsn=worker_dsn)

    assert not doctor.err


async def test_a_role_with_the_printed_grants_reaches_every_table(dsn: str) -> None:
    with role(dsn, Kind.WORKER) as worker_dsn:
        async with postgres_world(worker_dsn) as world:
            process, lane = await world.runner_with_lane()
            await lane.acquire([ONE])
            request, dead = message(), message()
            await process.storage.save([request, dead])
            state = StateWrite(entity_type="Stock", entity_id="sku-1", version=1, payload=b"1")
            await lane.flush(
                [Commit(shard=ONE, replies=[chunk(request, 0), defect(dead)], states=[state])]
            )
            await process.storage.acknowledge([ack(request, 0)], wait=True)
            await process.storage.post(
                [Post(kind=PostKind.ACK, to=ONE, request_id=next_id(), body=b"")]
            )

            assert await process.storage.interrupt([interrupt(request)]) == [True]
            assert await process.storage.revive([dead.envelope.request_id]) == [ONE]
            assert len(await process.storage.take_post()) == 1
            assert await process.storage.sweep_post(timedelta(hours=1)) == 0


def test_grants_are_printed_for_a_role_and_a_kind_of_login() -> None:
    printed = outlast("grants", 'o"dd', "--as", "client")

    assert printed.out == grants(Kind.CLIENT, role='o"dd', schema="engine")
    assert "grant insert, delete on" in printed.out
    assert 'to "o""dd";' in printed.out
    assert outlast("grants", "").code == 2
    assert outlast("grants", "app", "--as", "king").code == 2
    assert outlast("grants", "app", "--schema", 'x"; drop').code == 2
