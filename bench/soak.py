"""W14: half of what it can do, for long, with retention on: whether anything grows."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

from bench.driver import Keys, run_many, run_one
from bench.place import Options, Place, other_process
from bench.results import Results, percentile
from bench.server import Connection, Server
from bench.usage import resident_mb
from engine import Client

TOP, TOP_AT_ONCE = 10_000, 2000
SHARE = 0.5
MINUTES, FULL_MINUTES = 3.0, 30.0
SAMPLES, ANEW = 30, 4
KEPT = {"OUTLAST_RETENTION": "20", "OUTLAST_PRUNE_INTERVAL": "5"}
SETTLING = 0.3
"""The share of the time after which nothing should grow any more."""
TICK = 0.02
BEHIND = 5000
"""So many unanswered starts, and the load waits for answers."""
SIZES = """
    select
        sum(pg_table_size(relid)) / 2^20 as table_mb,
        sum(pg_indexes_size(relid)) / 2^20 as index_mb,
        sum(n_dead_tup)::float8 as dead_rows, sum(n_live_tup)::float8 as live_rows
    from pg_stat_user_tables where schemaname = 'engine'
"""

Sample = dict[str, float]


@dataclass(slots=True)
class _Load:
    """Workflows started at a steady rate, whenever the last ones end."""

    client: Client
    rate: float
    taken: list[float] = field(default_factory=list[float])
    keys: Keys = field(default_factory=Keys)
    waiting: int = 0
    late: int = 0

    async def run(self, seconds: float) -> None:
        began, started = perf_counter(), 0
        async with asyncio.TaskGroup() as group:
            while (elapsed := perf_counter() - began) < seconds:
                due = int(elapsed * self.rate) - started
                started += due
                for _ in range(due):
                    if self.waiting >= BEHIND:
                        self.late += 1
                    else:
                        group.create_task(self._one())
                await asyncio.sleep(TICK)

    async def _one(self) -> None:
        self.waiting += 1
        began = perf_counter()
        await run_one(self.client, self.keys(), steps=1)
        self.taken.append(perf_counter() - began)
        self.waiting -= 1


async def soak(server: Server, results: Results, options: Options) -> None:
    """The last minutes again on a new database with a new runner: what is different there is not
    the host's."""
    seconds = (FULL_MINUTES if options.full else MINUTES) * 60 * min(1.0, options.scale)
    each = seconds / SAMPLES
    async with other_process(server, results, options, env=KEPT) as place:
        await _top(place)
        rate = await _top(place) * SHARE
        async with place.metered() as meter:
            samples = await sampled(place, rate, SAMPLES, each)
    async with other_process(server, results, options, env=KEPT) as fresh:
        await _top(fresh)
        anew = await sampled(fresh, rate, ANEW, each)
    variant = f"{rate:.0f} a second for {seconds / 60:.0f} min"
    for metric in METRICS:
        _add(results, variant, metric, samples, anew)
    total = sum(int(sample["rate"] * each) for sample in samples)
    results.add(
        "W14",
        variant,
        "left out, being behind",
        sum(sample["late"] for sample in samples),
        "workflows",
        n=total,
        cores=meter.cores(),
        **meter.per(max(1, total)),
    )


async def _top(place: Place) -> float:
    """The most it can do, in workflows a second."""
    began = perf_counter()
    await run_many(place.client, place.keys, TOP, at_once=TOP_AT_ONCE)
    return TOP / (perf_counter() - began)


async def sampled(place: Place, rate: float, count: int, seconds: float) -> list[Sample]:
    """So many samples of so many seconds, under a load of ``rate`` workflows a second."""
    load = _Load(place.client, rate)
    async with place.database.connected() as admin, asyncio.TaskGroup() as group:
        group.create_task(load.run(count * seconds))
        return [await _sample(place, admin, load, seconds) for _ in range(count)]


async def _sample(place: Place, admin: Connection, load: _Load, seconds: float) -> Sample:
    async with place.metered() as meter:
        await asyncio.sleep(seconds)
    taken, load.taken = load.taken, []
    late, load.late = load.late, 0
    row = await admin.fetchrow(SIZES)
    assert row is not None
    return {
        "rate": len(taken) / seconds,
        "p50": percentile(taken, 0.5) * 1000 if taken else 0.0,
        "p99": percentile(taken, 0.99) * 1000 if taken else 0.0,
        "cpu_ms": meter.cpu_ms(max(1, len(taken))),
        "runner_mb": resident_mb(*place.runners),
        "host_ms": _host_ms(),
        "late": late,
        **{name: float(value) for name, value in row.items()},
    }


def _host_ms() -> float:
    """How long the same work takes, to see what becomes of the host meanwhile."""
    taken: list[float] = []
    for _ in range(5):
        began = perf_counter()
        sum(range(100_000))
        taken.append(perf_counter() - began)
    return min(taken) * 1000


METRICS = {
    "rate": ("rate", "workflows/s"),
    "p50": ("p50", "ms"),
    "p99": ("p99", "ms"),
    "cpu_ms": ("processor time of all", "ms"),
    "runner_mb": ("runner memory", "MiB"),
    "table_mb": ("table size", "MiB"),
    "index_mb": ("index size", "MiB"),
    "dead_rows": ("dead rows", "rows"),
    "live_rows": ("live rows", "rows"),
    "host_ms": ("a sum of 100,000 numbers", "ms"),
}
"""By the names of a sample: how they are told, and in what."""


def _add(
    results: Results,
    variant: str,
    metric: str,
    samples: Sequence[Sample],
    anew: Sequence[Sample],
) -> None:
    """What it is in the end, beside what it was once it had settled and what it is begun anew."""
    settled = [sample[metric] for sample in samples[int(len(samples) * SETTLING) :]]
    third = max(1, len(settled) // 3)
    name, unit = METRICS[metric]
    first, last = percentile(settled[:third], 0.5), percentile(settled[-third:], 0.5)
    begun = [sample[metric] for sample in anew]
    results.add(
        "W14",
        variant,
        name,
        last,
        unit,
        settled=round(first, 2),
        growth=round(last / first - 1, 3) if first else None,
        anew=round(percentile(begun, 0.5), 2),
        samples=[round(sample[metric], 2) for sample in samples],
        samples_anew=[round(value, 2) for value in begun],
    )
