"""The cluster from the command line: who runs, with what in hand, and whose the shards are."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from rich.console import Console

from cli.shard_map import shard_map
from engine import Entity, Runner, rpc
from engine.core.ids import RunnerId, ShardId
from engine.storage.protocol import ShardRow
from tests.cli.orders import Fulfil, Order, Stock
from tests.cli.terminal import do, settings
from tests.eventually import eventually

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
ONE, TWO = RunnerId(UUID(int=1)), RunnerId(UUID(int=2))
NAMES = {ONE: "web-1:7", TWO: "web-2:8"}
QUICK = {
    "heartbeat_interval": timedelta(milliseconds=100),
    "time_to_live": timedelta(seconds=5),
}


class Far(Entity):
    shard_group = "far"

    @rpc
    async def ping(self) -> None: ...


def shard(
    number: int, runner: RunnerId | None, *, epoch: int = 1, group: str = "default"
) -> ShardRow:
    acquired = None if runner is None else NOW - timedelta(minutes=number)
    return ShardRow(shard=ShardId(group, number), epoch=epoch, runner=runner, acquired_at=acquired)


def drawn(rows: list[ShardRow], width: int = 80) -> list[str]:
    console = Console(width=width, highlight=False, color_system=None)
    with console.capture() as capture:
        console.print(shard_map(rows, NAMES, now=NOW, width=width), crop=False)
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_map_shows_each_shard_by_its_owners_letter_with_the_epochs() -> None:
    rows = [shard(n, ONE if n % 2 else TWO, epoch=2 if n == 3 else 1) for n in range(1, 23)]
    rows[4] = shard(5, None)
    assert drawn(rows, width=40) == [
        "default  22 shards",
        "   OWNER    SHARDS  EPOCHS  LAST CHANGE",
        "A  web-1:7      10  1 to 2  1m ago",
        "B  web-2:8      11  1       2m ago",
        ".  nobody        1  1",
        "",
        " 1 ABAB.BABAB ABABABABAB AB",
    ]


def test_a_narrow_map_has_more_lines_and_says_where_each_begins() -> None:
    rows = [shard(n, ONE) for n in range(1, 301)]
    lines = drawn(rows, width=30)
    assert lines[-15:-12] == [
        "  1 AAAAAAAAAA AAAAAAAAAA",
        " 21 AAAAAAAAAA AAAAAAAAAA",
        " 41 AAAAAAAAAA AAAAAAAAAA",
    ]
    assert lines[-1] == "281 AAAAAAAAAA AAAAAAAAAA"


def test_each_group_has_a_map_of_its_own() -> None:
    lines = drawn([shard(1, TWO, group="slow"), shard(1, ONE), shard(2, ONE)])
    assert lines[0] == "default  2 shards"
    assert lines[5:7] == ["", "slow  1 shard"]
    assert lines[-1] == "1 A"


def test_more_runners_than_letters_share_a_sign() -> None:
    rows = [shard(n, RunnerId(UUID(int=n))) for n in range(1, 71)]
    lines = drawn(rows, width=100)
    assert lines[-1].endswith("++++++++")
    assert str(UUID(int=70)) in " ".join(lines)


async def test_runners_say_what_they_have_in_hand(dsn: str) -> None:
    quick = settings(dsn).model_copy(
        update={**QUICK, "weight": 2.5, "suspend_after": timedelta(minutes=1)}
    )
    async with Runner(quick).register(Stock(), Fulfil()) as runner:
        await runner.client.entity(Stock, "a").reserve(1)
        await runner.client.start(Fulfil, Order(id="o-1"), key="o-1")

        async def told() -> bool:
            (row,) = (await do("runners", dsn=dsn)).lines
            assert (row["entities"], row["executions"], row["lanes"]) == (2, 1, 2)
            assert (row["shards"], row["weight"], row["draining"]) == (4, 2.5, False)
            assert row["state"] == "live"
            return True

        await eventually(told)
        table = await do("runners", "--table", dsn=dsn)
    head, line = table.out.splitlines()
    assert head.split() == [
        *("RUNNER", "STATE", "BEAT", "GROUPS", "WEIGHT", "SHARDS", "LANES", "ENTITIES"),
        *("EXECUTIONS", "VERSION", "SERVES"),
    ]
    assert line.split()[3:9] == ["default", "2.5", "4", "2", "2", "1"]


async def test_a_group_that_nobody_serves_is_pointed_out_with_the_command_to_give(dsn: str) -> None:
    async with Runner(settings(dsn)).register(Stock(), Far()) as runner:
        await runner.client.tell(runner.client.entity(Far, "f").ping)
        await eventually(lambda: len(runner.epochs) == 4)
        ended = await do("shards", "--table", dsn=dsn)
        served = await do("shards", dsn=dsn)

    assert ended.code == 0
    assert "far  4 shards" in ended.out
    assert "nobody" in ended.out
    assert "'outlast run APP --groups far' starts one" in ended.err
    assert served.err == ended.err
    assert {line["group"] for line in served.lines} == {"default", "far"}
