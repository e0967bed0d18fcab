"""The command line over several runners: who lives, whose the shards are, what waits for whom."""

import asyncio
import signal
from collections import Counter
from datetime import datetime
from typing import Any

import pytest

from engine import Settings
from tests.cli.terminal import do
from tests.cluster.cast import Annexed, Single
from tests.cluster.live import Live
from tests.eventually import eventually

pytestmark = [pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]


async def lines(live: Live, *command: str) -> list[dict[str, Any]]:
    ended = await do(*command, "--json", dsn=live.settings.dsn)
    assert ended.code == 0, ended.err
    return ended.lines


async def by_pid(live: Live, *command: str) -> dict[int, dict[str, Any]]:
    return {line["pid"]: line for line in await lines(live, "runners", *command)}


async def test_runners_lists_each_live_one_with_its_heartbeat_load_lanes_and_version(
    live: Live,
) -> None:
    id, gate = live.name(), live.name("gate")
    async with asyncio.timeout(150):
        await live.client.tell(live.client.entity(Single, id).wait_at, gate)
        await live.noted(id, 1)
        busy = await live.owner(live.address(Single, id).shard)
        lanes = int(str(live.hostility.settings.get("lanes", Settings(dsn="x").lanes)))

        async def all_told() -> bool:
            rows = await by_pid(live)
            assert {*rows} == {runner.pid for runner in live.runners}
            assert Counter((await live.owners()).values()) == Counter(
                {pid: row["shards"] for pid, row in rows.items()}
            )
            assert {row["lanes"] for row in rows.values()} == {lanes}
            assert rows[busy.pid]["entities"] >= 1
            return True

        await eventually(all_told, timeout=30)
        rows = [*(await by_pid(live)).values()]
        now = await live.database.fetchval("select clock_timestamp()")
        await live.open(gate)
    assert {row["state"] for row in rows} == {"live"}
    assert {tuple(row["groups"]) for row in rows} == {("default",)}
    assert len({row["version"] for row in rows}) == 1
    assert all(row["types"]["Single"] == "entity:default" for row in rows)
    for row in rows:
        age = now - datetime.fromisoformat(row["beat_at"])
        assert age < 2 * live.settings.time_to_live


async def test_runners_tells_a_stopped_one_and_a_dead_one_from_those_that_live(live: Live) -> None:
    """The dead one is silent until a peer has found it so."""
    async with asyncio.timeout(150):
        leaving = await live.processes.start_runner()
        dying = await live.processes.start_runner()
        await live.settled(live.runners)
        leaving.send(signal.SIGTERM)
        assert await leaving.process.wait() == 0
        await dying.kill()

        async def both_ended() -> bool:
            every = await by_pid(live, "--all")
            assert every[leaving.pid]["state"] == "ended"
            assert every[dying.pid]["state"] == "ended"
            return True

        await eventually(both_ended, timeout=40)
        assert {*await by_pid(live)} == {runner.pid for runner in live.runners}


async def test_shards_is_a_map_of_who_owns_what_under_the_epochs_that_they_know(
    live: Live,
) -> None:
    async with asyncio.timeout(150):
        await assert_mapped(live)
        before = {line["shard"]: line for line in await lines(live, "shards")}
        gone = live.runners[-1]
        (row,) = [row for pid, row in (await by_pid(live)).items() if pid == gone.pid]
        await gone.kill()
        await live.restore()
        await assert_mapped(live)
        after = {line["shard"]: line for line in await lines(live, "shards")}
    for shard, line in before.items():
        changed = line["runner"] != after[shard]["runner"]
        if line["group"] == "default":
            assert changed or line["runner"] != row["id"]
            assert after[shard]["epoch"] >= line["epoch"] + changed


async def assert_mapped(live: Live) -> None:
    """What the command says, what the runners say and what they ought to own is one."""

    async def alike() -> bool:
        runners = {row["id"]: pid for pid, row in (await by_pid(live)).items()}
        shown = {
            (line["number"], runners[line["runner"]], line["epoch"])
            for line in await lines(live, "shards")
            if line["group"] == "default"
        }
        known = {
            (number, runner.pid, epoch)
            for runner in live.runners
            for _, number, epoch in await runner.ask("shards")
        }
        assert shown == known
        return len(shown) == live.shards

    await eventually(alike, timeout=30)


async def test_entities_lists_what_waits_with_its_owner_and_what_nobody_serves(
    live: Live,
) -> None:
    busy, abroad, gate = live.name("busy"), live.name("abroad"), live.name("gate")
    async with asyncio.timeout(150):
        for _ in range(3):
            await live.client.tell(live.client.entity(Single, busy).wait_at, gate)
            await live.client.tell(live.client.entity(Annexed, abroad).echo, "")
        await live.noted(busy, 1)

        async def listed(type: str, id: str) -> dict[str, Any]:
            found = await lines(live, "entities", type, "--limit", "1000")
            return next(line for line in found if line["id"] == id)

        runners = {row["id"]: pid for pid, row in (await by_pid(live)).items()}
        here = await listed("Single", busy)
        nowhere = await listed("Annexed", abroad)
        owner = await live.owner(live.address(Single, busy).shard)
        assert (here["waiting"], runners[here["runner"]]) == (3, owner.pid)
        assert nowhere["waiting"] == 3
        # One that was killed a moment ago may have had its shard.
        assert runners.get(nowhere["runner"]) not in [runner.pid for runner in live.runners]
        await live.open(gate)

        async def handled() -> bool:
            found = await lines(live, "entities", "Single", "--limit", "1000")
            return busy not in [line["id"] for line in found]

        await eventually(handled, timeout=30)


async def test_schedules_says_who_keeps_a_cron_also_after_that_one_has_died(live: Live) -> None:
    name = live.name("Noting")
    async with asyncio.timeout(150):
        await live.register("Noting", name, schedule="0 0 1 1 *", timezone="Europe/Berlin")

        async def kept() -> int:
            """By which process."""
            shown = [line for line in await lines(live, "schedules") if line["name"] == name]
            runners = {row["id"]: pid for pid, row in (await by_pid(live)).items()}
            return runners.get(shown[0]["runner"], 0) if shown else 0

        first = await eventually(kept, timeout=30)
        (shown,) = [line for line in await lines(live, "schedules") if line["name"] == name]
        assert (shown["schedule"], shown["timezone"]) == ("0 0 1 1 *", "Europe/Berlin")
        assert (shown["state"], shown["next_at"][5:]) == ("idle", "12-31T23:00:00Z")
        await next(each for each in live.runners if each.pid == first).kill()
        await live.restore()
        await live.register("Noting", name, schedule="0 0 1 1 *", timezone="Europe/Berlin")
        assert await eventually(kept, timeout=30) in {runner.pid for runner in live.runners}
