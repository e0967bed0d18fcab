"""Anything at any time: random calls while faults are done to processes, sessions, server, network.

``make chaos SEED=7 MINUTES=60`` runs it in rounds of two minutes; round n of seed s is that of seed
s + n. See ``docs/reliability.md``.
"""

import logging
import random
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from engine.core.clock import monotonic
from tests.chaos.a_round import QUICK, Run, a_round, told
from tests.chaos.faults import Faults
from tests.chaos.server import own_server

log = logging.getLogger(__name__)

ROUND = 120.0


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "seconds" in metafunc.fixturenames:
        seconds = metafunc.config.getoption("--chaos-seconds")
        limit = pytest.mark.timeout(240 + 3 * seconds)
        metafunc.parametrize("seconds", [pytest.param(seconds, id="chaos", marks=limit)])


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    given: int | None = request.config.getoption("--chaos-seed")
    return random.randrange(1 << 31) if given is None else given


async def test_every_promise_is_kept_whatever_is_done_to_processes_server_and_network(
    tmp_path: Path, seconds: float, seed: int
) -> None:
    total: Counter[str] = Counter()
    with own_server() as server:

        def harm(run: Run) -> Faults:
            return Faults(
                run.chaos,
                run.network,
                seed=run.seed,
                time_to_live=QUICK["time_to_live"],
                dsn=run.dsn,
                server=server,
                replace=run.replace,
            )

        until = monotonic() + seconds
        for nth in count():
            length = min(ROUND, until - monotonic())
            if length <= 0:
                break
            logs = tmp_path / str(nth)
            logs.mkdir()
            async with a_round(server.dsn, logs, seed + nth, harm) as run:
                await run.live(length)
                violations = await run.judge()
            log.info("seed %d: %.0f s: %s", seed + nth, length, dict(run.counted()))
            total += run.counted()
            if violations:
                pytest.fail(told(run, violations))
    assert all(total[f"{op} ok"] for op in ("join", "add", "stream", "result")), total
    log.info("seed %d, %.0f s, %d rounds: %s", seed, seconds, nth, dict(sorted(total.items())))
