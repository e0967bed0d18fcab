"""Which code executions need, from the command line."""

import asyncio
import shutil
from pathlib import Path

import pytest

from engine import Runner
from tests.cli.terminal import do, outlast, settings
from tests.eventually import eventually
from tests.workflow import code
from tests.workflow.code import New, Old, Ship, ShipV2


async def suspended(dsn: str, count: int) -> None:
    async def look() -> bool:
        return len((await do("ls", "-s", "suspended", dsn=dsn)).lines) == count

    await eventually(look)


async def test_versions_count_what_needs_them_and_doctor_and_why_say_what_is_missing(
    dsn: str,
) -> None:
    async with Runner(settings(dsn)).register(Ship()) as runner:
        await runner.client.start(Ship, "a", key="old")
        await suspended(dsn, 1)
        (line,) = (await do("versions", dsn=dsn)).lines
        assert line == {
            "workflow": "Ship",
            "version": 1,
            "runners": 1,
            "executions": 1,
            "live": {"suspended": 1},
            "unserved": 0,
            "misfits": 0,
        }
    async with Runner(settings(dsn)).register(ShipV2()) as runner:
        await eventually(lambda: len(runner.epochs) == 4)
        await runner.client.start(ShipV2, "b", key="new")
        await suspended(dsn, 2)

        async def told() -> bool:
            lines = (await do("versions", "Ship", dsn=dsn)).lines
            seen = [(each["version"], each["runners"], each["unserved"]) for each in lines]
            return seen == [(1, 0, 1), (2, 1, 0)]

        await eventually(told)
        drawn = await do("versions", "--table", dsn=dsn)
        head, one, two = drawn.out.splitlines()
        assert head.split() == [
            *("WORKFLOW", "VERSION", "RUNNERS", "SUSPENDED", "UNSERVED", "MISFITS"),
        ]
        assert one.split() == ["Ship", "1", "0", "1", "1", "0"]
        assert two.split() == ["Ship", "2", "1", "1", "0", "0"]
        assert (
            "executions of Ship version 1 wait for an owner that serves it (1): let all"
            in drawn.err
        )
        listed = await do("ls", "-w", "Ship", "--version", "1", dsn=dsn)
        assert [each["id"] for each in listed.lines] == ["Ship/old"]
        dry = await do("interrupt", "--version", "2", "--dry-run", dsn=dsn)
        assert [each["id"] for each in dry.lines] == ["Ship/new"]
        assert (await do("ls", "--version", "0", dsn=dsn)).code == 2
        why = await do("why", "Ship/old", dsn=dsn)
        assert "does not serve version 1 of Ship, which it is pinned to" in why.lines[0]["why"]
        doctor = await do("doctor", dsn=dsn)
        (finding,) = [each for each in doctor.lines if each["topic"] == "code"]
        assert finding["severity"] == "wrong"
        assert "Ship version 1 wait" in finding["message"]
        listed = await do("runners", dsn=dsn)
        assert listed.lines[0]["types"] == {"Ship": "workflow:default:2"}


async def test_patches_show_who_is_on_which_way(dsn: str) -> None:
    async with Runner(settings(dsn)).register(Old()) as runner:
        await runner.client.start(Old, "a", key="old")
        await suspended(dsn, 1)
    async with Runner(settings(dsn)).register(New()) as runner:
        await runner.client.start(New, "b", key="new")
        await suspended(dsn, 2)
        (line,) = (await do("patches", dsn=dsn)).lines
        assert line == {"workflow": "Tick", "change": "better", "new": 1, "old": 0, "unasked": 1}
        table = (await do("patches", "Tick", "--table", dsn=dsn)).out.splitlines()
        assert table[0].split() == ["WORKFLOW", "CHANGE", "NEW", "OLD", "UNASKED"]
        assert table[1].split() == ["Tick", "better", "1", "0", "1"]
        history = (await do("history", "Tick/new", dsn=dsn)).lines
        assert [each["payload"] for each in history if each["kind"] == "patched"] == [True]


async def test_an_exported_history_is_replayed_on_its_own_version(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Runner(settings(dsn)).register(Ship()) as runner:
        await runner.client.start(Ship, "a", key="old")
        await suspended(dsn, 1)
        exported = await do("history", "Ship/old", "--export", dsn=dsn)
    shutil.copy(code.__file__, tmp_path / "shipping.py")
    with (tmp_path / "shipping.py").open("a") as app:
        app.write("\n\nboth = [ShipV2(), Ship()]\nnewest = [ShipV2()]\n")
    (tmp_path / "old.jsonl").write_text(exported.out)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert (await asyncio.to_thread(outlast, "replay", "shipping:both", "old.jsonl")).code == 0
    ended = await asyncio.to_thread(outlast, "replay", "shipping:newest", "old.jsonl")
    assert ended.code == 1
    assert "is of Ship, version 1" in ended.lines[0]["error"]
