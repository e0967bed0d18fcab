"""Databases of every released version are brought to this one and go on; runners work meanwhile."""

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from engine import (
    Client,
    ExecutionFailed,
    Runner,
    SchemaMismatch,
    Settings,
    Status,
    StorageUnavailable,
)
from engine.storage import migrate as migrating
from engine.storage import schema_version
from engine.storage.migrate import migrate, revision, scripts
from engine.storage.schema_version import HEAD
from engine.testing import History, replay
from tests.cli.terminal import do
from tests.eventually import eventually
from tests.storage.test_migrations import catalog
from tests.upgrades.app import (
    EFFECTS,
    SETTINGS,
    SHARDS,
    Flow,
    Lots,
    Nightly,
    Order,
    Part,
    Stock,
    cluster,
    served,
)
from tests.upgrades.dump import COMMAND, DUMPS, current, schema_of

LIMIT = timedelta(seconds=30)
TRIAL = Path(__file__).with_name("trial.py")
LATER, BREAKING = "0002", "0101"


async def test_there_is_a_dump_of_this_version_with_its_schema(empty_dsn: str) -> None:
    assert current().exists(), f"there is no dump of this version: run {COMMAND}"
    async with database(empty_dsn) as sql:
        await sql.execute(schema_of(current()))
    await migrate(empty_dsn, schema="migrated")
    assert await catalog(empty_dsn, "engine") == await catalog(empty_dsn, "migrated"), (
        f"{current().name} has another schema than the migrations make. While this version is not"
        f" released, dump it anew: {COMMAND}. One that is released keeps its migrations and its"
        " dump: write a new revision, for a new version."
    )


@pytest.mark.parametrize("dump", sorted(DUMPS.glob("*.sql")), ids=lambda dump: dump.stem)
async def test_what_a_version_has_left_is_read_and_goes_on(dump: Path, empty_dsn: str) -> None:
    async with database(empty_dsn) as sql:
        await sql.execute(dump.read_text(encoding="utf-8"))
        await sql.execute(EFFECTS)
        await asyncio.gather(migrate(empty_dsn), migrate(empty_dsn))
        assert await revision(empty_dsn) == HEAD
        async with Client(Settings(dsn=empty_dsn, **SETTINGS)) as client:
            await read(client)
        async with cluster(empty_dsn) as running:
            await go_on(running.client)

            async def nothing_waits() -> bool:
                return not await sql.fetch("select from engine.inbox")

            await eventually(nothing_waits)
        effects = await sql.fetch("select execution, count(*) from effects group by 1 order by 1")
        assert {row[0]: row[1] for row in effects} == {
            # Those of the version that made the dump are not in it.
            **dict.fromkeys(("waits", "paused", "parent", "sleeps", "retries"), 1),
            "scheduled": 2,
            "new": 2,
        }


async def read(client: Client) -> None:
    """All that has ended tells how, and each history fits its code."""
    found = {each.id: each async for each in client.executions(workflow=Flow)}
    assert {id: info.status for id, info in found.items()} == {
        "ended wait": Status.SUCCEEDED,
        "ended fail": Status.FAILED,
        "interrupted": Status.INTERRUPTED,
        "waits": Status.SUSPENDED,
        "paused": Status.PAUSED,
        "parent": Status.SUSPENDED,
        "sleeps": Status.SUSPENDED,
        "retries": Status.SUSPENDED,
        "scheduled": Status.SCHEDULED,
    }
    assert found["waits"].attributes == {"tenant": "é"}
    for id in found:
        history = await client.execution(Flow, id).history()
        assert isinstance(history, History)
        await replay(history, Flow())
    ended = client.execution(Flow, "ended wait")
    assert await ended.join() == ["signal", "update", "gone", "a", "True"]
    with pytest.raises(ExecutionFailed, match="refused"):
        await client.execution(Flow, "ended fail").join()
    # The same start is the same execution, and what was handled once is not handled again.
    assert (await client.start(Flow, Order(id="ended wait", items=["a"]))).id == ended.id


async def go_on(client: Client) -> None:
    """Whatever was under way ends, and what is new works as well."""
    waits = client.execution(Flow, "waits")
    await waits.signal(Flow.say, "after")
    await waits.resolve(Flow.go, "gone")
    assert await waits.join(LIMIT) == ["before", "after", "gone", "True"]
    paused = client.execution(Flow, "paused")
    await paused.resume()
    await paused.resolve(Flow.go, "gone")
    assert await paused.join(LIMIT) == ["gone", "True"]
    await client.execution(Part, "part of parent").resolve(Part.ready, "done")
    assert await client.execution(Flow, "parent").join(LIMIT) == ["part done", "True"]
    for id in ("sleeps", "retries", "scheduled"):
        assert await client.execution(Flow, id).join(LIMIT) == ["True"]
    await client.queue(Lots).resume()
    for item in ("one", "two"):
        assert await (await client.submit(Lots, item, id=item)).join(LIMIT) == item.upper()
    new = await client.start(Flow, Order(id="new"))
    await new.resolve(Flow.go, "gone")
    assert await new.join(LIMIT) == ["gone", "True"]
    shelf = await client.entity(Stock, "shelf").held()
    assert shelf[:3] == ["ended wait", "ended fail", "interrupted"]
    assert shelf[-2:] == ["scheduled", "new"]
    assert len(shelf) == 10
    assert [letter.id async for letter in client.dead_letters()] == ["broken"]
    assert [each.name for each in await client.schedules()] == [Nightly.name]


@asynccontextmanager
async def database(dsn: str) -> AsyncIterator["asyncpg.Connection[Any]"]:
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        await connection.close()


# --- while runners work ---------------------------------------------------------------------------


@contextmanager
def as_later_code(tmp_path: Path, head: str = LATER) -> Iterator[None]:
    """What begins or migrates within belongs to a later version of outlast, with one revision more.
    What runs already goes on as it is."""
    directory = tmp_path / f"migrations {head}"
    if not directory.exists():
        shutil.copytree(scripts(), directory)
        trial = TRIAL.read_text().replace("LATER", head).replace("HEAD", HEAD)
        (directory / "versions" / f"{head}_trial.py").write_text(trial)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(migrating, "scripts", lambda: directory)
        for module in (migrating, schema_version):
            patch.setattr(module, "HEAD", head)
        patch.setattr(migrating, "PAUSE", 0.05)
        yield


@asynccontextmanager
async def at_work(client: Client) -> AsyncIterator[list[str]]:
    """Executions begin and end all the time; the ids of those that have, in the end of all."""
    ended = list[str]()
    over = asyncio.Event()

    async def work() -> None:
        while not over.is_set():
            execution = await client.start(Flow, Order(id=f"work {len(ended)}"))
            await execution.resolve(Flow.go, "gone")
            assert await execution.join(LIMIT) == ["gone", "True"]
            ended.append(execution.id)

    async with asyncio.TaskGroup() as group:
        group.create_task(work())
        yield ended
        over.set()


async def test_a_revision_that_adds_is_applied_while_runners_work_and_either_code_begins(
    dsn: str, tmp_path: Path
) -> None:
    async with database(dsn) as sql, cluster(dsn) as old:
        await sql.execute(EFFECTS)
        async with at_work(old.client) as ended:
            await eventually(lambda: len(ended) > 3)
            with as_later_code(tmp_path):
                with pytest.raises(SchemaMismatch, match=rf"{HEAD}.*run 'outlast migrate'"):
                    await Client(Settings(dsn=dsn, **SETTINGS)).__aenter__()
                await asyncio.gather(migrate(dsn), migrate(dsn))
                assert await revision(dsn) == LATER
            before = len(ended)
            await eventually(lambda: len(ended) > before + 3)
            assert set(old.runner.epochs.values()) == {1}, "no session was lost for it"
            with as_later_code(tmp_path):
                async with Runner(Settings(dsn=dsn, **SETTINGS)).register(*served()) as new:
                    await eventually(lambda: len(new.epochs) == SHARDS // 2)
                    execution = await new.client.start(Flow, Order(id="new"))
                    await execution.resolve(Flow.go, "gone")
                    assert await execution.join(LIMIT) == ["gone", "True"]
            # A process of the old code may begin as well, and what it migrates stays as it is.
            await migrate(dsn)
            assert await revision(dsn) == LATER
            assert (await do("migrate", "--check", "--table", dsn=dsn)).code == 0
            async with Client(Settings(dsn=dsn, **SETTINGS)) as client:
                assert (await client.execution(Flow, "new").describe()).status.finished


async def test_code_that_a_revision_is_not_for_does_not_begin(dsn: str, tmp_path: Path) -> None:
    with as_later_code(tmp_path, BREAKING):
        await migrate(dsn)
    for begin in (lambda: Client(Settings(dsn=dsn)).__aenter__(), lambda: migrate(dsn)):
        with pytest.raises(SchemaMismatch, match=rf"{BREAKING}.*upgrade outlast"):
            await begin()


async def test_whoever_holds_a_table_keeps_the_migration_from_it_and_nobody_else(
    dsn: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with database(dsn) as sql, database(dsn) as other, cluster(dsn) as old:
        await sql.execute(EFFECTS)
        async with at_work(old.client) as ended:
            holding = other.transaction()
            await holding.start()
            await other.execute("lock table engine.executions in access share mode")
            with as_later_code(tmp_path):
                migration = asyncio.create_task(migrate(dsn))
                await eventually(lambda: "trying again" in caplog.text)
                before = len(ended)
                await eventually(lambda: len(ended) > before)
                assert await revision(dsn) == HEAD
                await holding.rollback()
                await migration
            assert await revision(dsn) == LATER
            before = len(ended)
            await eventually(lambda: len(ended) > before)
            assert set(old.runner.epochs.values()) == {1}


async def test_a_migration_gives_up_on_a_table_that_is_never_let_go(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(migrating, "TRIES", 2)
    async with database(dsn) as other, other.transaction():
        await other.execute("lock table engine.executions in access share mode")
        with as_later_code(tmp_path), pytest.raises(StorageUnavailable, match="does not end"):
            await migrate(dsn)
        assert await revision(dsn) == HEAD


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
