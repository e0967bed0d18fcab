"""Measure latency, throughput and costs: ``make bench`` or ``python -m bench --help``.

Starts and joins workflows from this process, once with the runner in a process of its own, which is
``outlast run``, and once with it in here. ``docs/performance.md`` says what each workload is.
"""

import argparse
import asyncio
import signal
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

from bench.alone import idle, resolve_to_result, start_to_result
from bench.limits import limits
from bench.many import children, long_workflow, many_steps, many_workflows
from bench.messages import free_items, limited_items, streams_and_calls
from bench.past import past
from bench.place import Options, Place, other_process, same_process
from bench.results import ROOT, Results
from bench.scale import scale
from bench.server import Server, open_server
from bench.silence import failover, handover
from bench.sleepers import sleepers
from bench.soak import soak
from bench.starts import starts
from bench.tables import tables
from bench.timeline import timeline
from cli.serve import calm_collector, fastest_loop

PLACED: dict[str, Callable[[Place], Awaitable[None]]] = {
    "W3": start_to_result,
    "W1": many_workflows,
    "W2": many_steps,
    "W4": long_workflow,
    "W5": children,
    "W6": resolve_to_result,
    "W7": sleepers,
    "W11": streams_and_calls,
    "Q1": free_items,
    "Q2": limited_items,
    "W8": idle,
}
"""With one runner, in either place."""
ARRANGED: dict[str, Callable[[Server, Results, Options], Awaitable[None]]] = {
    "W9": scale,
    "W10": starts,
    "W12": past,
    "W13": failover,
    "H1": handover,
    "W14": soak,
    "T": timeline,
    "L": limits,
    "S1": tables,
}
"""With processes of their own."""
LONG = {"W12", "W13", "W14", "S1"}
PLACES = {"other": other_process, "same": same_process}


async def measure(arguments: argparse.Namespace) -> None:
    options = Options(scale=arguments.scale, full=arguments.full)
    wanted: list[str] = arguments.only or [
        name for name in (*PLACED, *ARRANGED) if name not in LONG or arguments.full
    ]
    if arguments.quick:
        wanted = [name for name in wanted if name in PLACED and name != "W8"]
    async with open_server() as server:
        results = Results(path=arguments.output, postgres=await server.version())
        async with server.database() as database:
            taken = await database.commit_seconds()
        results.add_durations("", "", "one-row commit", taken)
        for _ in range(arguments.repeat):
            for name in arguments.runner:
                placed = [work for workload, work in PLACED.items() if workload in wanted]
                if placed:
                    async with PLACES[name](server, results, options) as place:
                        for work in placed:
                            await work(place)
            for workload, arranged in ARRANGED.items():
                if workload in wanted:
                    await arranged(server, results, options)
    print(f"written to {results.path}; python -m bench.report {results.path} makes tables of it")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    day = datetime.now(UTC).date().isoformat()
    known = sorted({*PLACED, *ARRANGED}, key=lambda name: (name[0] != "W", len(name), name))
    parser.add_argument("--only", choices=known, nargs="+", metavar="W1", help=", ".join(known))
    parser.add_argument("--runner", choices=PLACES, nargs="+", default=list(PLACES))
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes (default 1)")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="with one runner only, and not W8")
    parser.add_argument(
        "--full", action="store_true", help=f"{', '.join(sorted(LONG))} too, at their full length"
    )
    parser.add_argument("--output", type=Path, default=ROOT / f"bench/results/{day}.jsonl")
    arguments = parser.parse_args()
    calm_collector()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # what we started ends with us
    with asyncio.Runner(loop_factory=fastest_loop()) as loop:
        loop.run(measure(arguments))


if __name__ == "__main__":
    main()
