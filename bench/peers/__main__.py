"""Measure ours and its rivals in turn: ``make bench-peers``, or ``python -m bench.peers --help``.

Each round runs every engine once, one after the other, each on a new database of one durable
server; then all idle workers at once, which do not disturb each other. What is not installed yet
is installed first, and what cannot be is told. A workload that an engine does not finish within
its limit is not given to it again.
"""

import argparse
import asyncio
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from bench.peers.catalogue import ENGINES, OURS
from bench.peers.install import install, versions
from bench.peers.report import tables
from bench.peers.session import Row, Session
from bench.report import read
from bench.results import ROOT, Results
from bench.server import open_server

SETTLE = 10.0
IDLE = 30.0


class Comparison:
    """All rounds of one run."""

    def __init__(self, sessions: Sequence[Session], results: Results, workloads: set[str]) -> None:
        self._sessions = sessions
        self._results = results
        self._wanted = workloads
        self._hopeless: set[tuple[str, str, str]] = set()

    async def round(self, number: int) -> None:
        first = number % len(self._sessions)  # nobody is always the first, or behind the same
        for session in (*self._sessions[first:], *self._sessions[:first]):
            workloads = self._workloads(session, idle=False)
            self._add(session, number, await session.measured(workloads))
        await self._idle(number)

    async def _idle(self, number: int) -> None:
        idle: dict[Session, Callable[[], Awaitable[list[Row]]]] = {}
        async with AsyncExitStack() as resting:
            for session in self._sessions:
                if self._workloads(session, idle=True):
                    try:
                        idle[session] = await resting.enter_async_context(session.idle())
                    except (EOFError, TimeoutError) as error:  # no worker
                        self._add(session, number, [{"workload": "W8", "failed": str(error)}])
            await asyncio.sleep(SETTLE)
            for since in idle.values():
                await since()
            await asyncio.sleep(IDLE)
            for session, since in idle.items():
                self._add(session, number, await since())

    def _workloads(self, session: Session, *, idle: bool) -> list[str]:
        engine, variant = session.engine, session.variant
        return [
            each
            for each in variant.workloads
            if each in self._wanted
            and (each == "W8") == idle
            and (engine.title, variant.name, each) not in self._hopeless
        ]

    def _add(self, session: Session, number: int, rows: Sequence[Row]) -> None:
        engine, variant = session.engine.title, session.variant.name
        for row in rows:
            named: Row = {"engine": engine, "round": number, **row}
            if "metric" not in row:
                self._hopeless.add((engine, variant, row["workload"]))
                named |= {"metric": "not finished", "value": row.get("unfinished", 0), "unit": "s"}
            self._results.add(variant=variant, **named)


async def measure(arguments: argparse.Namespace) -> None:
    wanted = [e for e in ENGINES if e.module in arguments.engines or e.module == OURS]
    complaints = {engine.module: await asyncio.to_thread(install, engine) for engine in wanted}
    async with open_server() as server:
        arguments.output.unlink(missing_ok=True)
        results = Results(path=arguments.output, postgres=await server.version())
        async with server.database() as database:
            taken = await database.commit_seconds()
        results.add_durations("", "", "one-row commit", taken, scale=arguments.scale)
        sessions: list[Session] = []
        for engine in wanted:
            complaint = complaints[engine.module]
            for variant in engine.variants:
                what = {"engine": engine.title, "note": variant.note, "versions": versions(engine)}
                if complaint:
                    what["missing"] = complaint
                else:
                    session = Session(engine, variant, server=server, scale=arguments.scale)
                    sessions.append(session)
                results.add("", variant.name, "engine", 0, "", **what)
        comparison = Comparison(sessions, results, set(arguments.workloads))
        for number in range(1, arguments.rounds + 1):
            await comparison.round(number)
    print(tables(read(results.path)))
    print(f"written to {results.path}; python -m bench.peers.report fills docs/performance.md")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    day = datetime.now(UTC).date().isoformat()
    rivals = [engine.module for engine in ENGINES if engine.module != OURS]
    workloads = [f"W{number}" for number in range(1, 9)]
    parser.add_argument("--engines", choices=rivals, nargs="*", default=rivals)
    parser.add_argument("--workloads", choices=workloads, nargs="+", default=workloads)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes (default 1)")
    parser.add_argument("--output", type=Path, default=ROOT / f"bench/results/peers-{day}.jsonl")
    for each in (signal.SIGTERM, signal.SIGINT):  # whatever ends us, all that we started ends
        signal.signal(each, signal.default_int_handler)
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
