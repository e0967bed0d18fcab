"""What is measured beside what: engines, the settings each is run with, and their workloads."""

from collections.abc import Sequence
from dataclasses import dataclass

WORKFLOWS = ("W1", "W2", "W3", "W4", "W5", "W6", "W7")
JOBS = ("W1", "W3", "W7")
IDLE = ("W8",)
OURS = "ours"


@dataclass(frozen=True, slots=True)
class Variant:
    """One way of running an engine; without ``in_process`` it has a worker process of its own.

    What an engine polls less often by default than it can has that as a variant for the latencies.
    """

    name: str
    workloads: Sequence[str]
    note: str
    in_process: bool = False


@dataclass(frozen=True, slots=True)
class Engine:
    """``module`` is its adapter in here, ``package`` what says its version."""

    module: str
    title: str
    package: str
    variants: Sequence[Variant]
    npm: str | None = None

    @property
    def module_path(self) -> str:
        return f"bench.peers.{'' if self.module == OURS else 'rivals.'}{self.module}"

    @property
    def own_store(self) -> bool:
        """It brings a server of its own, and asks ours nothing."""
        return self.npm is not None


ENGINES = (
    Engine(
        OURS,
        "outlast",
        "outlast",
        (
            Variant("two processes", WORKFLOWS + IDLE, "settings as they come"),
            Variant("in process", WORKFLOWS, "settings as they come", in_process=True),
        ),
    ),
    Engine(
        "dbos",
        "DBOS",
        "dbos",
        (
            Variant("in process", WORKFLOWS, "no queue; settings as they come", in_process=True),
            Variant("queue tight", WORKFLOWS + IDLE, "queue and results polled each 10 ms"),
            Variant("queue", ("W3", *IDLE), "as it comes: polled each second"),
        ),
    ),
    Engine(
        "absurd",
        "Absurd",
        "absurd-sdk",
        (
            Variant(
                "tight",
                WORKFLOWS + IDLE,
                "100 tasks at once, queue polled each 10 ms, a single result each 2 ms",
            ),
            Variant(
                "default",
                ("W3", "W6", *IDLE),
                "100 tasks at once, queue polled each 250 ms, as it comes",
            ),
        ),
    ),
    Engine(
        "restate",
        "Restate",
        "restate-sdk",
        (
            Variant(
                "service", WORKFLOWS + IDLE, "its server with its own store, HTTP/2 to hypercorn"
            ),
        ),
        npm="@restatedev/restate-server@1.7.12",
    ),
    Engine(
        "procrastinate",
        "Procrastinate",
        "procrastinate",
        (
            Variant(
                "single", JOBS + IDLE, "100 jobs at once, deferred one by one over 20 connections"
            ),
            Variant("batch", ("W1",), "the same, deferred in one batch"),
        ),
    ),
    Engine(
        "pgqueuer",
        "PgQueuer",
        "pgqueuer",
        (
            Variant("single", JOBS + IDLE, "batches of 100, enqueued one by one"),
            Variant("batch", ("W1",), "the same, enqueued in one batch"),
        ),
    ),
)
