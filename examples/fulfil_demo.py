"""Orders on two runners, one of which is killed while it works: see every order end, once.

``main`` is what ``python examples/fulfil.py`` and ``make demo`` run. What it says at the end it has
asked the shop's tables and the payment provider's ledger, not the engine.
"""

import asyncio
import os
import tempfile
from pathlib import Path
from time import monotonic

import asyncpg

from engine import Client, Execution, ExecutionFailed, Settings
from examples.fulfil import NEEDS_APPROVAL, Fulfil, Order, Receipt
from examples.gateway import Gateway
from examples.stage import ROOT, RunnerProcess, database, outlast, runners, shared_out, until

ON_HAND = {"mug": 500, "tea": 500, "scarf": 500}
PER_SECOND = 25
OPEN_CALLS = "select key from calls where pid = ? and not answered"


async def main(orders: int = 60) -> int:
    """Run the demo; 0 when every check holds."""
    began = monotonic()
    say("Starting PostgreSQL" if "OUTLAST_DSN" not in os.environ else "Using your PostgreSQL")
    with tempfile.TemporaryDirectory(prefix="outlast-demo-") as folder:
        async with asyncio.timeout(100), database("demo") as dsn:
            shop = await asyncpg.connect(dsn)
            await shop.execute((ROOT / "examples/fulfil.sql").read_text())
            await shop.executemany("insert into shop.stock values ($1, $2)", ON_HAND.items())
            gateway = Gateway(Path(folder, "gateway.sqlite"))
            with runners(
                2,
                "examples.fulfil:runner",
                dsn=dsn,
                folder=Path(folder),
                GATEWAY_LEDGER=str(gateway.ledger),
            ) as processes:
                await shared_out(dsn, processes)
                pids = " and ".join(str(process.pid) for process in processes)
                say(f"Two runners share the work: processes {pids}")
                async with Client(Settings(dsn=dsn, schema="engine")) as client:
                    day = Day(client, gateway, processes, made_up(orders))
                    await day.run()
                held = await check(day, shop)
                await shop.close()
                await show(day, dsn)
    say(f"Done in {monotonic() - began:.0f} s." if held else "Some check failed.")
    return 0 if held else 1


def made_up(count: int) -> list[Order]:
    """Orders of which every third needs an approval; a client may start them in any order."""
    skus = list(ON_HAND)
    return [
        Order(
            id=f"o-{n:02}",
            sku=skus[n % 7 % 3],
            count=1 + n % 3,
            cents=NEEDS_APPROVAL + 100 * n if n % 3 == 0 else 1_000 + 100 * n,
        )
        for n in range(1, count + 1)
    ]


def is_refused(order: Order) -> bool:
    """The manager refuses every third of the large orders."""
    return order.cents >= NEEDS_APPROVAL and int(order.id[2:]) % 9 == 0


class Day:
    """The day of the kill: orders come in, the manager decides, a runner dies."""

    def __init__(
        self,
        client: Client,
        gateway: Gateway,
        processes: list[RunnerProcess],
        orders: list[Order],
    ) -> None:
        self.client = client
        self.gateway = gateway
        self.processes = processes
        self.orders = orders
        self.executions: dict[str, Execution[Receipt]] = {}
        self.receipts: dict[str, Receipt] = {}
        self.errors: dict[str, str] = {}
        self.cut_off: list[str] = []
        self.killed = asyncio.Event()
        self.killed_at = 0.0

    async def run(self) -> None:
        large = sum(order.cents >= NEEDS_APPROVAL for order in self.orders)
        say(f"{len(self.orders)} orders come in, {PER_SECOND} a second; {large} need an approval")
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            group.create_task(self.kill())
            for order in self.orders:
                self.executions[order.id] = await self.client.start(Fulfil, order)
                group.create_task(self.join(order))
                if order.cents >= NEEDS_APPROVAL:
                    group.create_task(self.decide(order))
                await asyncio.sleep(1 / PER_SECOND)
        since = monotonic() - self.killed_at
        say(f"Every order has ended, the last one {since:.1f} s after the kill")

    async def kill(self) -> None:
        """Kill the first runner when it waits for the provider's answer to some charges."""
        victim, other = self.processes
        half = len(self.orders) // 2

        def in_the_middle() -> bool:
            return len(self.executions) >= half and len(self.open_calls(victim)) >= 2

        await until(in_the_middle, seconds=20, what="a runner in the middle of two charges")
        victim.kill()
        self.killed_at = monotonic()
        self.killed.set()
        self.cut_off = [key.split("/")[1] for key in self.open_calls(victim)]
        say(
            f"Killed {victim.pid} with SIGKILL. The provider had taken the money for"
            f" {', '.join(self.cut_off)}\n  and nobody was left to hear it."
            f" Process {other.pid} takes over"
        )

    def open_calls(self, process: RunnerProcess) -> list[str]:
        return [str(key) for (key,) in self.gateway.read(OPEN_CALLS, process.pid)]

    async def decide(self, order: Order) -> None:
        """Approve or refuse an order: some before the kill, some just after it."""
        if int(order.id[2:]) % 2:
            await self.killed.wait()
        await self.executions[order.id].resolve(Fulfil.approved, not is_refused(order))

    async def join(self, order: Order) -> None:
        try:
            self.receipts[order.id] = await self.executions[order.id].join()
        except ExecutionFailed as error:
            self.errors[order.id] = error.error.type


async def check(day: Day, shop: asyncpg.Connection) -> bool:
    """Ask the shop and the provider what really happened."""
    refused = {order.id: "Refused" for order in day.orders if is_refused(order)}
    wanted = sorted((o.id, o.cents) for o in day.orders if o.id not in refused)
    calls = day.gateway.read("select count(*) from calls")[0][0]
    charges = day.gateway.read("select reference, cents from charges order by reference")
    keys = day.gateway.read("select count(*) from charges group by key having count(*) > 1")
    booked = await shop.fetch("select order_id, cents from shop.payments order by order_id")
    shelves = await shop.fetch("select sku, on_hand from shop.stock")
    on_hand = {row["sku"]: row["on_hand"] for row in shelves}
    sold = {
        sku: sum(o.count for o in day.orders if o.sku == sku and o.id not in refused)
        for sku in ON_HAND
    }
    print()
    ended = f"{len(day.receipts)} fulfilled, {len(day.errors)} refused"
    charged = f"{calls} calls reached the provider, which charged {len(charges)} times"
    verdicts = [
        tell(
            f"{len(day.orders)} orders ended: {ended}",
            holds=day.errors == refused and len(day.receipts) == len(wanted),
        ),
        tell(
            f"{charged}: once for each fulfilled order, never twice under one key",
            holds=charges == wanted and not keys,
        ),
        tell(
            f"{len(booked)} payments are booked, one for each",
            holds=[tuple(row) for row in booked] == wanted,
        ),
        tell(
            "the stock adds up, and what was refused is back on the shelf",
            holds=on_hand == {sku: count - sold[sku] for sku, count in ON_HAND.items()},
        ),
        tell(
            f"{len(day.cut_off)} orders were cut off in mid-charge by the kill",
            holds=bool(day.cut_off),
        ),
    ]
    return all(verdicts)


def tell(sentence: str, *, holds: bool) -> bool:
    print(f"  {'✓' if holds else '✗ NOT TRUE:'} {sentence}")
    return holds


async def show(day: Day, dsn: str) -> None:
    """The same, as ``outlast`` tells it."""
    survivor = day.cut_off[0]
    await outlast(dsn, "ls", "--limit", "8")
    say(f"{survivor} was cut off by the kill. Its journal:")
    await outlast(dsn, "show", f"Fulfil/{survivor}")
    seen = "select pid, answered from calls where key like ? order by id"
    print(f"\nWhat the provider saw of {survivor}, all under one idempotency key:")
    for pid, answered in day.gateway.read(seen, f"Fulfil/{survivor}/%"):
        print(f"  a call from process {pid}, {'answered' if answered else 'cut off'}")


def say(sentence: str) -> None:
    print(f"\n• {sentence}", flush=True)
